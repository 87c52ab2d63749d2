"""Hears which statements each role sends to PostgreSQL, on a wire between the processes and the server."""

import re
import socket
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit, urlunsplit

READ_OR_WRITE = re.compile(r"(?:\s|--[^\n]*\n)*(SELECT|WITH|INSERT|UPDATE|DELETE)\b", re.IGNORECASE)
CHUNK_BYTES = 65536


class Heard:
    """The texts of the statements, by the user of the session that sent them."""

    def __init__(self, server: tuple[str, int]) -> None:
        self.statements: dict[str, set[str]] = defaultdict(set)
        self._server = server
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._accept, name="heard", daemon=True)
        self._thread.start()

    def url(self, url: str) -> str:
        """The same URL, by way of this wire, in clear."""
        parts = urlsplit(url)
        netloc = f"{parts.netloc.rpartition('@')[0]}@127.0.0.1:{self._listener.getsockname()[1]}"
        return urlunsplit(parts._replace(netloc=netloc, query="sslmode=disable&gssencmode=disable"))

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._carry, args=(client,), name="heard", daemon=True).start()

    def _carry(self, client: socket.socket) -> None:
        with client, socket.create_connection(self._server) as server:
            back = threading.Thread(target=self._back, args=(client, server), name="heard", daemon=True)
            back.start()
            self._there(client, server)
            back.join()

    def _there(self, client: socket.socket, server: socket.socket) -> None:
        user, unread = "", b""
        with suppress(OSError):
            while data := client.recv(CHUNK_BYTES):
                unread += data
                while True:
                    head = 1 if user else 0  # the first message, which names the user, has no letter
                    end = head + int.from_bytes(unread[head : head + 4])
                    if len(unread) < max(head + 4, end):
                        break
                    kind, body, unread = unread[:head], unread[head + 4 : end], unread[end:]
                    if not user:
                        words = body[4:].split(b"\0")
                        user = words[words.index(b"user") + 1].decode()
                    elif kind == b"Q" or kind == b"P":
                        text = body.split(b"\0")[0 if kind == b"Q" else 1].decode()
                        if READ_OR_WRITE.match(text):
                            self.statements[user].add(text)
                server.sendall(data)
        _end(client, server)

    def _back(self, client: socket.socket, server: socket.socket) -> None:
        with suppress(OSError):
            while data := server.recv(CHUNK_BYTES):
                client.sendall(data)
        _end(client, server)


def _end(*ends: socket.socket) -> None:
    for end in ends:
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


@contextmanager
def hearing(url: str) -> Iterator[Heard]:
    """A wire to the server of the URL that hears every statement."""
    parts = urlsplit(url)
    heard = Heard((str(parts.hostname), int(parts.port or 5432)))
    try:
        yield heard
    finally:
        heard.close()
