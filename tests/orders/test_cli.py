"""`orders --help` tells a new user what each command and each option does, in one screen."""

from collections.abc import Iterator

import click
import pytest
from click.testing import CliRunner

from orders import cli


def commands(group: click.Group, words: str = "orders") -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        yield f"{words} {name}", command
        if isinstance(command, click.Group):
            yield from commands(command, f"{words} {name}")


COMMANDS = dict(commands(cli.main))


@pytest.mark.parametrize("words", COMMANDS)
def test_every_command_and_option_has_its_help(words: str) -> None:
    """
    The first sentence fits the list of commands whole; no option is without a text.
    """
    command = COMMANDS[words]

    assert command.help
    assert not command.get_short_help_str(60).endswith("...")
    assert [param.name for param in command.params if isinstance(param, click.Option) and not param.help] == []


@pytest.mark.parametrize("words", ["orders", *COMMANDS])
def test_help_needs_no_settings(words: str) -> None:
    """
    A shell without any of our settings gets the help, by either option.
    """
    for option in ("-h", "--help"):
        result = CliRunner(env=dict.fromkeys(("DATABASE_URL", "AMQP_URL", "BASE_URL"))).invoke(
            cli.main, [*words.split()[1:], option]
        )
        assert (result.exit_code, result.output.splitlines()[0].startswith("Usage: ")) == (0, True)


def test_topology_names_a_setting_that_is_missing() -> None:
    """
    One line says which, and the exit code is that of a wrong call.
    """
    result = CliRunner(env={"AMQP_URL": None}).invoke(cli.main, ["topology"])

    assert result.exit_code == 2
    assert "AMQP_URL" in result.output
    assert len(result.output.splitlines()) == 1
