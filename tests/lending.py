"""One PostgreSQL and one RabbitMQ for all workers of a run: the controller starts them when the first one asks.

A run without workers asks itself. What breaks servers does not borrow any: it starts its own.
"""

import socket
import tempfile
import threading
from contextlib import ExitStack, suppress
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from dev.sandbox import roles
from dev.sandbox.choice import Choice
from dev.sandbox.servers import ForeignServer, Servers, servers
from tests import places, warm

ACCEPT_SECONDS = 0.2


class LendingError(Exception):
    """There are no servers to lend; the message says why."""


class Loan(msgspec.Struct, frozen=True, kw_only=True):
    """Where the servers are, and the name of a migrated database that nobody connects to: each test gets a copy."""

    database_url: str
    amqp_url: str
    management_url: str | None
    template: str

    def servers(self, choice: Choice) -> Servers:
        return Servers(
            choice=choice,
            postgres=ForeignServer("postgres"),
            rabbitmq=ForeignServer("rabbitmq"),
            database_url=self.database_url,
            amqp_url=self.amqp_url,
            management_url=self.management_url,
        )


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked for, or why there is none."""

    loan: Loan | None = None
    parent: str = ""
    error: str = ""


class Lender:
    """Starts the servers for the first who asks, and ends them when it is closed."""

    def __init__(self, choice: Choice | None) -> None:
        self._choice = choice
        self._lock = threading.Lock()
        self._parents_lock = threading.Lock()
        self._stack = ExitStack()
        self._loan: Loan | None = None
        self._parents: dict[str, warm.Parent] = {}
        self._folder: Path | None = None

    def lend(self) -> Loan:
        with self._lock:
            if self._choice is None:
                raise LendingError("this run was to need no servers")
            if self._loan is None:
                # Alembic imports while the servers start.
                imports = threading.Thread(target=self.parent, args=["alembic"], name="alembic")
                imports.start()
                self._stack.callback(imports.join)
                # Nobody kills these, so they need not flush.
                opened = self._stack.enter_context(servers(self._choice, testcontainers=True, flushes=False))
                template = self._stack.enter_context(places.database(opened))
                warm.upgrade(template)
                roles.open_database(template)  # here, since two at once would get in each other's way
                self._loan = Loan(
                    database_url=opened.database_url,
                    amqp_url=opened.amqp_url,
                    management_url=opened.management_url,
                    template=urlsplit(template).path.removeprefix("/"),
                )
            return self._loan

    def parent(self, module: str) -> str:
        """Return the socket of this module's warm parent, which is started for the first who asks."""
        with self._parents_lock:
            if module not in self._parents:
                if self._folder is None:
                    self._folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="orders-warm-")))
                parent = self._parents[module] = warm.Parent(self._folder, module)
                self._stack.callback(parent.close)
            return str(self._parents[module].path)

    def serve(self) -> Path:
        """Lend to other processes too, at the socket of this path; what they leave beside it goes with it."""
        folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="orders-lending-")))
        path = folder / "socket"
        listener = self._stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(str(path))
        listener.listen(64)
        ended = threading.Event()
        thread = threading.Thread(target=self._answer, args=[listener, ended], name="lending", daemon=True)
        thread.start()
        self._stack.callback(thread.join)
        self._stack.callback(ended.set)
        return path

    def close(self) -> None:
        self._stack.close()

    def _answer(self, listener: socket.socket, ended: threading.Event) -> None:
        listener.settimeout(ACCEPT_SECONDS)
        while not ended.is_set():
            with suppress(TimeoutError, BrokenPipeError):
                borrower, _ = listener.accept()
                with borrower, borrower.makefile("rb") as question:
                    borrower.settimeout(None)
                    borrower.sendall(msgspec.json.encode(self._answer_to(msgspec.json.decode(question.readline()))))

    def _answer_to(self, module: str | None) -> Answer:
        try:
            return Answer(loan=self.lend()) if module is None else Answer(parent=self.parent(module))
        except Exception as error:  # whatever it is, the one who asked raises it
            return Answer(error=repr(error))


class Borrower:
    """Asks the lender of another process, at the socket of this path."""

    def __init__(self, path: str) -> None:
        self._path = path

    def lend(self) -> Loan:
        loan = self._ask(None).loan
        assert loan is not None
        return loan

    def parent(self, module: str) -> str:
        return self._ask(module).parent

    def close(self) -> None:
        """What was lent is the lender's to end."""

    def _ask(self, module: str | None) -> Answer:
        with socket.socket(socket.AF_UNIX) as wire:
            wire.connect(self._path)
            wire.sendall(msgspec.json.encode(module) + b"\n")
            with wire.makefile("rb") as reply:
                answer = msgspec.json.decode(reply.read(), type=Answer)
        if answer.error:
            raise LendingError(answer.error)
        return answer
