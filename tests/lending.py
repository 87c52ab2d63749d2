"""One PostgreSQL and one RabbitMQ for all workers of a run: the controller starts them when the first one asks.

A run without workers asks itself. What breaks servers does not borrow any: it starts its own.
"""

import os
import socket
import tempfile
import threading
from contextlib import ExitStack, suppress
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from dev.sandbox.choice import Choice
from dev.sandbox.servers import ForeignServer, Servers, servers
from dev.sandbox.system import upgrade
from tests import places

ACCEPT_SECONDS = 0.2


class LendingError(Exception):
    """The controller could not start the servers; the message says why."""


class Loan(msgspec.Struct, frozen=True, kw_only=True):
    """Where the servers are, and the name of a migrated database that nobody connects to: each test gets a copy."""

    database_url: str
    amqp_url: str
    management_url: str | None
    template: str
    error: str = ""

    def servers(self, choice: Choice) -> Servers:
        return Servers(
            choice=choice,
            postgres=ForeignServer("postgres"),
            rabbitmq=ForeignServer("rabbitmq"),
            database_url=self.database_url,
            amqp_url=self.amqp_url,
            management_url=self.management_url,
        )


class Lender:
    """Starts the servers for the first who asks, and ends them when it is closed."""

    def __init__(self, choice: Choice) -> None:
        self._choice = choice
        self._lock = threading.Lock()
        self._stack = ExitStack()
        self._loan: Loan | None = None

    def lend(self) -> Loan:
        with self._lock:
            if self._loan is None:
                # Nobody kills these, so they need not flush.
                opened = self._stack.enter_context(servers(self._choice, testcontainers=True, flushes=False))
                template = self._stack.enter_context(places.database(opened))
                upgrade(template)
                self._loan = Loan(
                    database_url=opened.database_url,
                    amqp_url=opened.amqp_url,
                    management_url=opened.management_url,
                    template=urlsplit(template).path.removeprefix("/"),
                )
            return self._loan

    def serve(self) -> Path:
        """Lend to other processes too, at the socket of this path."""
        folder = Path(tempfile.mkdtemp(prefix="orders-lending-"))
        self._stack.callback(os.rmdir, folder)
        path = folder / "socket"
        listener = self._stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(str(path))
        listener.listen(64)
        self._stack.callback(path.unlink)
        ended = threading.Event()
        thread = threading.Thread(target=self._answer, args=[listener, ended], name="lending", daemon=True)
        thread.start()
        self._stack.callback(thread.join)
        self._stack.callback(ended.set)
        return path

    def close(self) -> None:
        self._stack.close()
        places.forget()

    def _answer(self, listener: socket.socket, ended: threading.Event) -> None:
        listener.settimeout(ACCEPT_SECONDS)
        while not ended.is_set():
            with suppress(TimeoutError, BrokenPipeError):
                borrower, _ = listener.accept()
                with borrower:
                    try:
                        loan = self.lend()
                    except Exception as error:  # whatever it is, the one who asked raises it
                        loan = Loan(database_url="", amqp_url="", management_url=None, template="", error=repr(error))
                    borrower.sendall(msgspec.json.encode(loan))


def borrow(path: str) -> Loan:
    """Ask the lender at this path; raise LendingError when it has nothing to lend."""
    with socket.socket(socket.AF_UNIX) as wire:
        wire.connect(path)
        with wire.makefile("rb") as answer:
            loan = msgspec.json.decode(answer.read(), type=Loan)
    if loan.error:
        raise LendingError(loan.error)
    return loan
