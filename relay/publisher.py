"""The connection to RabbitMQ: publish a wave, return the reply to each of its messages.

Every call has a deadline, after which the relay cuts the connection: a stopped broker answers nothing, while its TCP
connection seems to be healthy. Only this module and `topology` know aiormq's errors.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import aiormq
import aiormq.exceptions
from aiormq.abc import AbstractChannel
from yarl import URL

from relay.channel import BatchChannel
from relay.frame_filter import FilteredTransport
from relay.frames import Unencodable
from relay.message import Answer, Message, Reply
from relay.replies import Closure, split_suspects, whose_channel_closure, whose_connection_closure

log = logging.getLogger("relay")

T = TypeVar("T")

CONNECT_SECONDS = 3.0
HEARTBEAT_SECONDS = 2  # aiormq gives a silent broker up after three heartbeats and a little: 9 s
RPC_SECONDS = 2.0
BLOCKED_GRACE_SECONDS = 0.5  # an alarm of the broker that is shorter does not count
SLOWEST_BYTES_PER_SECOND = 4 * 1024 * 1024  # adds time for large bodies to the deadline of a wave
WAVE_CHANNELS, CHANNELS = 2000, 2047  # channel numbers for waves, used in turn, and all that RabbitMQ allows

CONNECTION_CODES: dict[type[Exception], int] = {
    aiormq.exceptions.ConnectionFrameError: 501,
    aiormq.exceptions.ConnectionSyntaxError: 502,
    aiormq.exceptions.ConnectionCommandInvalid: 503,
    aiormq.exceptions.ConnectionChannelError: 504,
    aiormq.exceptions.ConnectionUnexpectedFrame: 505,
    aiormq.exceptions.ConnectionResourceError: 506,
    aiormq.exceptions.ConnectionNotAllowed: 530,
    aiormq.exceptions.ConnectionNotImplemented: 540,
    aiormq.exceptions.ConnectionInternalError: 541,
}


class BrokerLost(Exception):
    """The broker cannot be reached, or does not answer in time."""


class BrokerRefused(BrokerLost):
    """Every broker refuses the password or the vhost: at a start no wait helps, later a rotation may pass."""


class BrokerBlocked(BrokerLost):
    """The broker is connected but takes no messages: a memory or disk alarm."""


class Denied(Exception):
    """The broker answered a request with a refusal."""


class _Exchanged(NamedTuple):
    """What became of a group of messages that was written to a channel."""

    replies: dict[int, Reply]  # by row id
    silent: list[Message]  # without a reply
    closure: Closure | None  # why they are silent, if the broker closed the channel or the connection
    text: str  # its words, or what was waited for


class Publisher:
    """Publishes waves on one connection, and returns the broker's reply to each message."""

    def __init__(self, urls: Sequence[str], confirm_seconds: float, name: str = "relay") -> None:
        """Use the first of `urls` that answers; a wave waits for its confirms for `confirm_seconds`.

        The URL of a connection that was dropped goes to the end of the list.
        """
        self._urls = list(urls)
        self._confirm_seconds = confirm_seconds
        self._name = name
        self._connection: aiormq.Connection | None = None
        self._transport = FilteredTransport()
        self._channel: BatchChannel | None = None
        self._asking: AbstractChannel | None = None
        self._channels_used = 0
        self._closing: set[asyncio.Task[None]] = set()

    @property
    def is_connected(self) -> bool:
        """Whether the connection is open."""
        return self._connection is not None and self._connection.is_opened

    @property
    def connection(self) -> aiormq.Connection:
        """The open connection; raises BrokerLost if there is none."""
        if self._connection is None or not self._connection.is_opened:
            raise BrokerLost("the connection is gone")
        return self._connection

    @property
    def is_blocked(self) -> bool:
        """Whether the broker takes no messages for the moment (a memory or disk alarm)."""
        if self._connection is None:
            return False
        # `ready` returns without a pause exactly if the connection is not blocked: one step of it shows that.
        step = self._connection.ready()
        try:
            step.send(None)
        except StopIteration:
            return False
        step.close()
        return True

    async def connect(self) -> aiormq.Connection:
        """Connect to the first broker of the list that answers; raises BrokerLost if none does."""
        self.drop()
        reasons = []
        refusals = 0
        for _ in range(len(self._urls)):
            url = self._urls[0]
            try:
                return await self._connect_to(url)
            except BrokerLost as lost:
                refusals += bool(self._transport.refusal)
                reasons.append(f"{_host(url)}: {self._transport.refusal or lost}")
                self._urls.append(self._urls.pop(0))
        why = "; ".join(reasons)
        if refusals == len(reasons):
            raise BrokerRefused(f"RabbitMQ refuses AMQP_URL ({why}): correct it, or make this user or vhost")
        raise BrokerLost(why)

    async def _connect_to(self, url: str) -> aiormq.Connection:
        self.drop()
        self._transport = transport = FilteredTransport()
        target = URL(url).update_query(heartbeat=str(HEARTBEAT_SECONDS), name=self._name)
        connection = aiormq.Connection(target, transport_factory=transport)
        with self._deadline(CONNECT_SECONDS, "no answer to the connection"), translated():
            # Until TCP and TLS are up there is no transport to cut.
            async with asyncio.timeout(CONNECT_SECONDS):
                await connection.connect()
        self._connection = connection
        return connection

    def drop(self) -> None:
        """Cut the connection without a close: calls that wait for it fail at once."""
        connection, self._connection, self._channel, self._asking = self._connection, None, None, None
        self._transport.cut()
        if connection is None:
            return
        # It may be a node that its cluster has lost: that one takes every connection, and never confirms anything.
        self._urls.append(self._urls.pop(0))
        if not connection.is_closed:
            self._end(connection.close(aiormq.exceptions.AMQPConnectionError("dropped")), "relay-drop-connection")

    async def close(self) -> None:
        """Close the connection, in at most `RPC_SECONDS`, and what is left of earlier ones."""
        connection, self._connection, self._channel, self._asking = self._connection, None, None, None
        if connection is not None:
            with contextlib.suppress(BrokerLost), self._deadline(RPC_SECONDS, "no answer to the close"), translated():
                await connection.close()
        self._transport.cut()
        if self._closing:
            await asyncio.wait(self._closing, timeout=RPC_SECONDS)

    async def ask(self, question: Callable[[AbstractChannel], Awaitable[T]]) -> T:
        """Return what `question` returns, given a channel beside the one that publishes.

        Raises Denied if the broker closes that channel, and BrokerLost.
        """
        connection = self.connection
        with self._deadline(RPC_SECONDS, "no answer to a question"), translated():
            try:
                if self._asking is None or self._asking.is_closed:
                    # Not the number of the last one: aiormq may not have released that yet.
                    numbers = range(WAVE_CHANNELS + 1, CHANNELS + 1)
                    free = (number for number in numbers if number not in connection.channels)
                    self._asking = await connection.channel(next(free), publisher_confirms=False)
                return await question(self._asking)
            except aiormq.exceptions.ChannelClosed as error:
                raise Denied(str(error)) from error
            except asyncio.CancelledError:
                # Its answer may still come, and must not be taken for the answer to the next question.
                asking, self._asking = self._asking, None
                if asking is not None:
                    self._end(asking.close(), "relay-drop-asking-channel")
                raise

    def _give_up_channel(self) -> None:
        channel, self._channel = self._channel, None
        if channel is not None and not channel.is_closed:
            self._end(channel.close(), "relay-drop-channel")

    def _end(self, closing: Any, name: str) -> None:
        """Let aiormq clean up in the background, since that may take seconds after a cut."""

        async def clean_up() -> None:
            with contextlib.suppress(Exception, asyncio.CancelledError):
                await closing

        task = asyncio.get_running_loop().create_task(clean_up(), name=name)
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def publish(self, wave: list[Message], until: float) -> dict[int, Reply]:
        """Publish a wave, and return the replies by row id.

        After a close by the broker the wave is bisected, until `until` (monotonic seconds). A message without a reply
        was not published alone: it stays pending. Raises BrokerLost: then the messages may or may not have arrived.
        """
        try:
            return await self._publish(wave, until)
        except (asyncio.CancelledError, BrokerBlocked):
            # The wave's confirms may still come: the next wave needs another channel.
            self._give_up_channel()
            raise

    async def _publish(self, wave: list[Message], until: float) -> dict[int, Reply]:
        answers: dict[int, Reply] = {}
        groups = [wave]
        while groups:
            group = groups.pop()
            if group is not wave and time.monotonic() > until:
                break
            channel = await self._ready_channel()
            sendable, payload = _encode(channel, group, answers)
            if not sendable:
                continue
            replies, silent, closure, text = await self._exchange(channel, sendable, payload)
            answers.update(replies)
            if closure is None:
                answers.update({message.id: Reply(Answer.UNANSWERED, text) for message in silent})
            elif silent:
                causes, others = split_suspects(closure, text, silent)
                answer = Answer.CLOSED_ROUTE if closure is Closure.ROUTE else Answer.CLOSED_ALONE
                answers.update({message.id: Reply(answer, text) for message in causes})
                groups.extend(reversed(others))
        return answers

    async def _exchange(self, channel: BatchChannel, wave: list[Message], payload: bytes) -> _Exchanged:
        """Write a wave and wait for its confirms."""
        end = time.monotonic() + self._confirm_seconds + len(payload) / SLOWEST_BYTES_PER_SECOND
        with self._deadline(self._confirm_seconds, "the socket takes no more"), translated():
            answered = await channel.send(wave, payload)
        blocked_since: float | None = None
        while not answered.done():
            now = time.monotonic()
            if now >= end:
                return await self._timed_out(channel)
            if not self.is_blocked:
                blocked_since = None
            elif blocked_since is None:
                blocked_since = now
            elif now - blocked_since > BLOCKED_GRACE_SECONDS:
                raise BrokerBlocked("a memory or disk alarm holds the connection")
            await asyncio.wait({answered}, timeout=min(0.2, end - now))
        replies, silent = channel.replies()
        if not silent:
            return _Exchanged(replies, silent, None, "")
        self._channel = None
        if channel.closed_by_broker is not None:
            code, text = channel.closed_by_broker
            closure = whose_channel_closure(code)
        else:
            error = None if answered.cancelled() else answered.exception()
            code = _connection_code(error)
            text = str(error) or type(error).__name__
            closure = whose_connection_closure(code)
        if closure is Closure.OUTAGE:
            self.drop()
            raise BrokerLost(text)
        return _Exchanged(replies, silent, closure, text if code is None else f"{code} {text}")

    async def _timed_out(self, channel: BatchChannel) -> _Exchanged:
        """Give up the channel of a wave without confirms in time; a late confirm must not count for another message.

        If the broker, or the next one of several, opens another channel, the routes have failed. If not, this raises
        BrokerLost.
        """
        if len(self._urls) > 1:
            log.warning(
                "no confirm within %g s from %s: trying the next broker", self._confirm_seconds, _host(self._urls[0])
            )
            self.drop()
        else:
            self._give_up_channel()
        await self._ready_channel()
        replies, silent = channel.replies()
        return _Exchanged(replies, silent, None, f"no confirm within {self._confirm_seconds:g} s")

    async def _ready_channel(self) -> BatchChannel:
        """Return the open channel, or open one, on a new connection if there is none."""
        if self._channel is not None and not self._channel.is_closed and self.is_connected:
            return self._channel
        connection = self._connection
        if connection is None or not connection.is_opened:
            connection = await self.connect()
        self._channels_used = self._channels_used % WAVE_CHANNELS + 1
        channel = BatchChannel(connection, self._channels_used)
        self._transport.register(channel.number, channel.take)
        connection.channels[self._channels_used] = channel
        with self._deadline(RPC_SECONDS, "no answer to the opening of a channel"), translated():
            await channel.open()
        self._channel = channel
        return channel

    @contextlib.contextmanager
    def _deadline(self, seconds: float, complaint: str) -> Any:
        """Cut the connection past the deadline: calls that wait for it fail. On any failure drop the connection."""
        late = False

        def cut() -> None:
            nonlocal late
            late = True
            self._transport.cut()

        handle = asyncio.get_running_loop().call_later(seconds, cut)
        try:
            yield
        except BrokerLost as lost:
            self.drop()
            raise BrokerLost(f"{complaint} within {seconds:g} s" if late else str(lost)) from lost
        finally:
            handle.cancel()


def _host(url: str) -> str:
    return f"{URL(url).host}:{URL(url).port or 5672}"


def _encode(channel: BatchChannel, group: list[Message], answers: dict[int, Reply]) -> tuple[list[Message], bytes]:
    """Return the messages that AMQP can encode, and their bytes; add a reply to `answers` for each of the others."""
    sendable: list[Message] = []
    payload: list[bytes] = []
    encode: Callable[[Message], bytes] = channel.encoder.encode
    for message in group:
        try:
            payload.append(encode(message))
            sendable.append(message)
        except Unencodable as error:
            answers[message.id] = Reply(Answer.UNENCODABLE, str(error))
    return sendable, b"".join(payload)


def _connection_code(error: BaseException | None) -> int | None:
    """Return the AMQP reply code with which the broker closed the connection, None if it gave none."""
    for known, code in CONNECTION_CODES.items():
        if isinstance(error, known):
            return code
    if isinstance(error, aiormq.exceptions.ConnectionClosed) and error.args and isinstance(error.args[0], int):
        return error.args[0]
    return None


@contextlib.contextmanager
def translated(*answers: type[Exception]) -> Any:
    """Turn the errors that aiormq raises for a lost connection into BrokerLost; let those of `answers` pass."""
    try:
        yield
    except answers:
        raise
    except asyncio.CancelledError:
        # A lost heartbeat surfaces as a cancellation, although no code has cancelled the task.
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        raise BrokerLost("no heartbeat from the broker") from None
    except StopAsyncIteration:
        # A peer that accepts the connection and closes it at once, as a load balancer without a backend does.
        raise BrokerLost("the connection was closed at once") from None
    except (aiormq.exceptions.AMQPError, aiormq.exceptions.ChannelInvalidStateError, OSError, EOFError) as error:
        raise BrokerLost(str(error) or repr(error)) from error
