"""The connection to the database breaks after each byte of a batch's exchange in turn."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit, urlunsplit
from uuid import UUID

from psycopg import AsyncConnection

from orders.database.batcher import Batcher, Limits
from orders.database.place_orders import Placed, Placement, place_orders, placement_of
from orders.model.errors import Refused, Unavailable
from orders.model.traceparent import continue_trace
from tests.orders.samples import counts, placement

# Every byte of an answer, and of what is sent every so many: SWEEP_EVERY=1 for each of them.
EVERY = int(os.environ.get("SWEEP_EVERY", "97"))


class Scissors:
    """A wire that breaks after so many bytes of an exchange, once it has been told to."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._server = (parts.hostname, parts.port)
        self._parts = parts
        self.sent = 0
        self.answered = 0
        self.cuts = 0
        self._sent_until: int | None = None
        self._answered_until: int | None = None

    @asynccontextmanager
    async def open(self) -> AsyncIterator[str]:
        """While it is open, the URL leads to the server by way of it."""
        listening = await asyncio.start_server(self._connect, "127.0.0.1", 0)
        credentials, _, _ = self._parts.netloc.rpartition("@")
        port = listening.sockets[0].getsockname()[1]
        async with listening:
            yield urlunsplit(self._parts._replace(netloc=f"{credentials}@127.0.0.1:{port}"))

    def count(self) -> None:
        """Count from here on, and break nothing."""
        self.sent = self.answered = 0
        self._sent_until = self._answered_until = None

    def cut_after(self, *, sent: int | None = None, answered: int | None = None) -> None:
        """Let so many bytes pass in one direction, then break the connection."""
        self.count()
        self._sent_until, self._answered_until = sent, answered

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        their_reader, their_writer = await asyncio.open_connection(*self._server)
        await asyncio.gather(
            self._pump(reader, their_writer, (writer, their_writer), is_answer=False),
            self._pump(their_reader, writer, (writer, their_writer), is_answer=True),
        )

    async def _pump(
        self,
        source: asyncio.StreamReader,
        sink: asyncio.StreamWriter,
        ends: tuple[asyncio.StreamWriter, ...],
        *,
        is_answer: bool,
    ) -> None:
        try:
            while data := await source.read(65536):
                before = self.answered if is_answer else self.sent
                until = self._answered_until if is_answer else self._sent_until
                if is_answer:
                    self.answered += len(data)
                else:
                    self.sent += len(data)
                if until is not None and before + len(data) > until:
                    self._sent_until = self._answered_until = None
                    self.cuts += 1
                    sink.write(data[: until - before])
                    await sink.drain()
                    return
                sink.write(data)
                await sink.drain()
        except OSError:
            pass
        finally:
            for end in ends:
                end.close()


async def test_every_byte(conn: AsyncConnection, database_url: str) -> None:
    """
    Wherever the connection breaks, each request gets its order, exactly once, or none and at most one is there.
    """
    scissors = Scissors(database_url)
    async with (
        scissors.open() as url,
        Batcher[Placement, Placed]("sweep", url, place_orders, Limits(patience=10)) as placing,
    ):

        def batch() -> list[Placement]:
            with_lines, keyed = placement(), placement(key=os.urandom(8).hex())
            return [placement_of(None, client="", traceparent=continue_trace(None)), with_lines, keyed]

        async def place(asked: list[Placement]) -> list[Placed | BaseException]:
            return await asyncio.gather(*(placing(each, each.size) for each in asked), return_exceptions=True)

        for _ in range(2):  # the second exchange is a prepared one
            await place(batch())
        scissors.count()
        await place(batch())
        places = [{"answered": cut} for cut in range(scissors.answered)]
        places += [{"sent": cut} for cut in range(0, scissors.sent, EVERY)]
        before, _, _ = await counts(conn)

        given = missed = 0
        for cut in places:
            asked = batch()
            scissors.cut_after(**cut)
            answers = await place(asked)
            scissors.count()
            cursor = await conn.execute(
                "SELECT o.order_id, count(e.id) FROM orders o LEFT JOIN outbox e ON e.key = o.order_id::text "
                "WHERE o.order_id = ANY(%s) GROUP BY 1",
                [[each.order.order_id for each in asked]],
            )
            stored: dict[UUID, int] = dict(await cursor.fetchall())
            for each, answer in zip(asked, answers, strict=True):
                assert not isinstance(answer, Refused), cut
                if isinstance(answer, Placed):
                    assert (answer.order_id, stored.get(each.order.order_id)) == (each.order.order_id, 1), cut
                    given += 1
                else:
                    assert isinstance(answer, Unavailable), cut
                    assert stored.get(each.order.order_id, 1) == 1
                    missed += 1

    assert scissors.cuts >= len(places) - 2, "nearly each of them broke the connection"
    assert given > missed
    after, events, _ = await counts(conn)
    assert after == events
    assert before + given <= after <= before + given + missed
