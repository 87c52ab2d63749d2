"""Parts of a command line that every command needs: errors in one line, and parameters read by a function."""

import sys
from collections.abc import Callable
from typing import NoReturn, TypeVar

import click

T = TypeVar("T")


def fail(program: str, complaint: str, code: int = 1) -> NoReturn:
    """End the process with one line on stderr, `program: complaint`, and an exit code."""
    click.echo(f"{program}: {complaint}", err=True)
    sys.exit(code)


class Parsed(click.ParamType[T]):
    """A parameter that a function reads from its text; the function's ValueError is the message to the user."""

    def __init__(self, name: str, parse: Callable[[str], T]) -> None:
        self.name = name  # as the usage line shows it
        self._parse = parse

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> T:
        """Return the parsed value, or end the command with exit code 2."""
        try:
            return self._parse(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)
