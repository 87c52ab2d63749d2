"""A command that cannot go on ends with one line; a parameter is read by its function."""

import click
import pytest
from click.testing import CliRunner

from orders.tools.command_line import Parsed, fail


def test_a_failure_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """
    The line names the command, and goes to stderr; the exit code is the caller's.
    """
    with pytest.raises(SystemExit) as ended:
        fail("orders dead show", "there is no dead letter 7", 3)

    assert ended.value.code == 3
    assert capsys.readouterr() == ("", "orders dead show: there is no dead letter 7\n")


def test_a_parameter_is_read_by_its_function() -> None:
    """
    The function's value arrives; its ValueError is a usage error with the function's words.
    """

    @click.command()
    @click.option("--count", type=Parsed("number", int))
    def command(count: int) -> None:
        click.echo(count + 1)

    good, bad = CliRunner().invoke(command, ["--count", "41"]), CliRunner().invoke(command, ["--count", "many"])

    assert (good.exit_code, good.output) == (0, "42\n")
    assert bad.exit_code == 2
    assert "invalid literal for int() with base 10: 'many'" in bad.output
