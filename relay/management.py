"""Reads from RabbitMQ's management interface what AMQP does not show: bindings, and policies that lose messages."""

import asyncio
import base64
import contextlib
import re
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar
from urllib.parse import SplitResult, quote, unquote, urlsplit

import msgspec

T = TypeVar("T")

SECONDS = 1.0  # the limit of a request: a claim is open meanwhile, with rows of other routes in it
DELIVERY_LIMIT = 1000  # of our queues: workers that are killed return messages, too
HEAD_START_SECONDS = 0.3  # of each node before the next one is asked


WHERE = "{where}"  # in the text of a fault, until it is known


class ManagementUnavailable(Exception):
    """The management interface did not answer as expected."""


class Binding(msgspec.Struct, frozen=True):
    """A binding of a queue: messages of the exchange `source` with this routing key (a pattern) reach the queue."""

    source: str
    routing_key: str


class LimitFault(msgspec.Struct, frozen=True, kw_only=True):
    """A limit by which RabbitMQ deletes a queue or gives up its messages. `text` names all of it, and the remedy."""

    queue: str
    policy: str  # the names of policy and operator policy; "" for an argument of the queue
    limit: str  # as policies call it
    text: str


class _NodeState(msgspec.Struct, frozen=True):
    name: str
    running: bool = False


class _Destination(msgspec.Struct, frozen=True):
    destination: str
    destination_type: str


class Management:
    """A client for one vhost. Each URL carries user and password, and the path below which the interface lies.

    Its methods raise ManagementUnavailable if no URL answers; its message begins with the name of the setting.
    """

    def __init__(
        self, urls: Sequence[str], vhost: str, setting: str = "RELAY_MANAGEMENT_URL", *, keep: bool = False
    ) -> None:
        """With `keep`, connections stay open for the next request, until `close`."""
        self._setting = setting
        self._nodes = [_Node(urlsplit(url), keep=keep) for url in urls]
        self.vhost = vhost
        self._vhost = quote(vhost, safe="")

    def close(self) -> None:
        """Close the connections that wait for the next request."""
        for node in self._nodes:
            node.close()

    async def queue(self, name: str) -> dict[str, Any]:
        """Return the queue with its arguments and the policy in effect."""
        return await self._get(f"/api/queues/{self._vhost}/{quote(name, safe='')}", dict[str, Any])

    async def running_nodes(self) -> list[str]:
        """Return the names of the nodes that run; only a user with the tag `monitoring` may ask."""
        found = await self._get("/api/nodes?columns=name,running", list[_NodeState])
        return [node.name for node in found if node.running]

    async def bindings(self, name: str) -> list[Binding]:
        """Return the queue's bindings."""
        return await self._get(f"/api/queues/{self._vhost}/{quote(name, safe='')}/bindings", list[Binding])

    async def destinations(self, exchange: str) -> list[str]:
        """Return the names of the queues that are bound to an exchange."""
        path = f"/api/exchanges/{self._vhost}/{quote(exchange, safe='')}/bindings/source"
        found = await self._get(path, list[_Destination])
        return [item.destination for item in found if item.destination_type == "queue"]

    async def _get(self, path: str, kind: type[T]) -> T:
        """Return the first answer of a node; if no node answers, raise the error of the first one."""

        async def ask(number: int, node: _Node) -> T:
            await asyncio.sleep(number * HEAD_START_SECONDS)
            try:
                return await node.get(path, kind)
            except ManagementUnavailable as error:
                raise ManagementUnavailable(f"{self._setting}: {error}") from error

        if len(self._nodes) == 1:
            return await ask(0, self._nodes[0])
        attempts = [asyncio.create_task(ask(*item), name="relay-management") for item in enumerate(self._nodes)]
        try:
            for attempt in asyncio.as_completed(attempts):
                with contextlib.suppress(ManagementUnavailable):
                    return await attempt
            return attempts[0].result()
        finally:
            for attempt in attempts:
                attempt.cancel()
            await asyncio.gather(*attempts, return_exceptions=True)


class _Node:
    """One URL, and the connections to it that wait for the next request."""

    def __init__(self, url: SplitResult, *, keep: bool) -> None:
        self._host = url.hostname or ""
        self._is_https = url.scheme == "https"
        self._port = url.port or (443 if self._is_https else 15672)
        self._below = url.path.rstrip("/")
        user, password = unquote(url.username or "guest"), unquote(url.password or "guest")
        credentials = base64.b64encode(f"{user}:{password}".encode()).decode()
        # HTTP/1.0: an answer has a length or ends with the connection, so that there are no chunks to read.
        self._head = f"HTTP/1.0\r\nHost: {self._host}\r\nAuthorization: Basic {credentials}\r\n"
        if keep:
            self._head += "Connection: keep-alive\r\n"
        self._keep = keep
        self._idle: list[_Streams] = []

    def close(self) -> None:
        while self._idle:
            self._idle.pop()[1].close()

    async def get(self, path: str, kind: type[T]) -> T:
        path = self._below + path
        try:
            async with asyncio.timeout(SECONDS):
                head, body = await self._exchange(f"GET {path} {self._head}\r\n".encode())
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
            raise ManagementUnavailable(f"no answer from {self._host} ({error!r})") from error
        status = head.split(b"\r\n", 1)[0].decode("latin-1")
        if " 200 " not in f"{status} ":
            raise ManagementUnavailable(f"{path} answers {status!r}")
        try:
            return msgspec.json.decode(body, type=kind)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            # Cut off, or the page of a proxy in between, which answers with 200, too.
            raise ManagementUnavailable(f"{path} answers no such JSON ({error})") from error

    async def _exchange(self, request: bytes) -> tuple[bytes, bytes]:
        """Return the head and the body of the answer."""
        while self._idle:
            # The server may have closed it meanwhile: it keeps a silent connection for some seconds only.
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                return await self._exchange_on(self._idle.pop(), request)
        ssl = True if self._is_https else None
        return await self._exchange_on(await asyncio.open_connection(self._host, self._port, ssl=ssl), request)

    async def _exchange_on(self, streams: "_Streams", request: bytes) -> tuple[bytes, bytes]:
        reader, writer = streams
        is_kept = False
        try:
            writer.write(request)
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            length = re.search(rb"\r\ncontent-length: *(\d+)", head)
            body = await (reader.readexactly(int(length[1])) if length else reader.read())
            is_kept = self._keep and length is not None and b"\r\nconnection: keep-alive\r\n" in head
        finally:
            # Otherwise its answer may still come, and must not be taken for that to the next request.
            if is_kept:
                self._idle.append(streams)
            else:
                writer.close()
        return head, body


_Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def limit_faults(management: Management, queues: Iterable[str]) -> list[LimitFault]:
    """Return what is wrong with the limits of the required queues, and with those of the queues of their dead letters.

    Raises ManagementUnavailable.
    """
    faults = []
    for queue in queues:
        found = await management.queue(queue)
        faults.append(fault_of_limits(queue, found))
        for dead_queue in await _dead_letter_queues(management, found):
            dead = await management.queue(dead_queue)
            # Arguments are the choice of the one who declared it: some services keep dead letters for a while only.
            chosen = {name: value for name, value in _arguments(dead).items() if name == "overflow"}
            faults.append(fault_of_limits(dead_queue, {**dead, "arguments": chosen}))
    return [fault for fault in faults if fault is not None]


def fault_of_limits(queue: str, found: dict[str, Any]) -> LimitFault | None:
    """Return which limit makes RabbitMQ delete the queue or give up its messages; None if none does.

    `found` is the queue as the management interface returns it.
    """
    arguments, policy = _arguments(found), _policy(found)
    limits = policy | arguments
    names = " and ".join(repr(found[kind]) for kind in ("policy", "operator_policy") if found.get(kind))
    by_policy = f"policy {names}" if names else "a policy"

    def fault(limit: str, text: str) -> LimitFault:
        is_policy = limit in policy
        where = by_policy if is_policy else "an argument of the queue"
        return LimitFault(queue=queue, policy=names if is_policy else "", limit=limit, text=text.replace(WHERE, where))

    for bound in ("max-length", "max-length-bytes"):
        if bound in limits and limits.get("overflow") != "reject-publish":
            return fault(
                bound,
                f"queue {queue!r} has {bound} without overflow=reject-publish ({WHERE}), so it drops messages it "
                "confirmed: set overflow in the policy, or take the limit away",
            )
    if "expires" in limits:
        return fault(
            "expires",
            f"queue {queue!r} is deleted with its messages while no one consumes it, by expires ({WHERE}): "
            "take it away",
        )
    if "message-ttl" in limits:
        return fault("message-ttl", f"queue {queue!r} drops messages after message-ttl ({WHERE}): take it away")
    # The lesser of the two counts. The argument alone is the choice of the one who declared the queue.
    limit, own = policy.get("delivery-limit", -1), arguments.get("delivery-limit", DELIVERY_LIMIT)
    if 0 <= limit < (own if own >= 0 else DELIVERY_LIMIT):
        return fault(
            "delivery-limit",
            f"queue {queue!r} gives messages up after {limit} returns, by delivery-limit ({WHERE}): "
            f"take it away, or set it to {DELIVERY_LIMIT}; workers that are killed return messages, too",
        )
    return None


def _arguments(found: dict[str, Any]) -> dict[str, Any]:
    return {name.removeprefix("x-"): value for name, value in dict(found.get("arguments") or {}).items()}


def _policy(found: dict[str, Any]) -> dict[str, Any]:
    """Return what the policy and the operator policy set together; RabbitMQ has merged them."""
    return dict(found.get("effective_policy_definition") or {})


async def _dead_letter_queues(management: Management, found: dict[str, Any]) -> list[str]:
    """Return the queues that the queue's dead letters go to, as far as bindings show it."""
    limits = {**_policy(found), **_arguments(found)}  # an argument wins over a policy here
    exchange = limits.get("dead-letter-exchange")
    if exchange is None:
        return []
    if exchange == "":
        routing_key = limits.get("dead-letter-routing-key")
        return [routing_key] if routing_key else []
    with contextlib.suppress(ManagementUnavailable):  # there may be no such exchange
        return await management.destinations(exchange)
    return []
