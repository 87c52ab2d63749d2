"""What the relay knows of itself, as /health, /status and Prometheus show it."""

import statistics
import time
from collections import deque
from collections.abc import Iterable, Sequence

import msgspec
from prometheus_client import CollectorRegistry, Counter, Gauge

from relay.management import LimitFault
from relay.mark import Holder
from relay.message import Answer
from relay.metrics import Histogram

LATENCY_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0, 600.0)
BATCH_BOUNDS = (1.0, 5.0, 10.0, 50.0, 100.0, 250.0, 500.0, 1000.0, 5000.0)
SAMPLES = 1024
LIVE_SECONDS = 10.0


class RelayState:
    """The relay's state and counters: its tasks write them, its health server shows them."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.broker = "connecting"  # connecting, connected, blocked (an alarm of the broker) or disconnected
        self.database = "connecting"  # connecting, connected or disconnected
        self.started = time.time()
        self.backlog = 0  # rows that are pending or parked
        self.oldest_pending_seconds = 0.0  # age of the oldest of them
        self.blocked_keys = 0  # keys that wait for an operator
        self.parked_rows = 0
        self.mark = 0  # the low-water mark: a row id
        self.floor = 0  # claims start above this row id
        self.mark_behind_rows = 0  # ids that were drawn above the mark
        self.mark_held_by_xid: int | None = None  # the transaction that has held the mark for longest
        self.mark_held_by: Holder | None = None  # who holds it open
        self.partitions_left: set[str] = set()  # by name: others have detached them, and the relay leaves them alone
        self.relays = 1  # that share the shards
        self.closed_routes: dict[str, str] = {}  # by route: the reason of its last failure
        self.policy_faults: Sequence[LimitFault] = ()  # of policies that came after the start
        self.published_rows = 0
        self._turned = time.monotonic()
        self._latencies: deque[float] = deque(maxlen=SAMPLES)
        self._answer_times: deque[float] = deque(maxlen=SAMPLES)

        def counter(name: str, text: str) -> Counter:
            return Counter(f"relay_{name}", text, registry=registry)

        self.published = counter("published", "Messages that the broker confirmed and a queue has")
        self.unrouted = counter("unrouted", "Messages that need not reach a queue, and that no queue wanted")
        self.returned = counter("returned", "Required messages that came back unroutable; they are tried again")
        self.nacked = counter("nacked", "Messages that the broker would not take; they are tried again")
        self.unanswered = counter("unanswered", "Messages without a confirm in time; they are tried again")
        self.refused = counter("refused", "Messages that will never be taken as they are; their keys are blocked")
        self.parked = counter("parked", "Rows that were taken out of the poll because their key has to wait")
        self.broker_lost = counter("broker_lost", "Times that the broker was lost or could not be reached")
        self.database_lost = counter("database_lost", "Times that the database was lost or could not be reached")
        self.woken = counter("woken", "Notifications that woke the relay before its poll was due")
        self.polls = counter("polls", "Looks at the outbox")
        self.partitions_made = counter("partitions_made", "Partitions made ahead")
        self.partitions_dropped = counter("partitions_dropped", "Partitions dropped after their retention")
        self.commit_to_confirm = Histogram(
            "relay_commit_to_confirm_seconds", "From the row's time to its confirm, on the database's clock",
            LATENCY_BOUNDS, registry,
        )  # fmt: skip
        self.batch_rows = Histogram("relay_batch_rows", "Rows of one claim", BATCH_BOUNDS, registry)
        self.poll_seconds = Histogram("relay_poll_seconds", "Time of one claim", LATENCY_BOUNDS, registry)

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"relay_{name}", text, registry=registry)

        gauge("backlog", "Rows not settled yet").set_function(lambda: self.backlog)
        gauge("oldest_pending_seconds", "Age of the oldest unsettled row").set_function(
            lambda: self.oldest_pending_seconds
        )
        gauge("blocked_keys", "Keys that wait for an operator").set_function(lambda: self.blocked_keys)
        gauge("parked_rows", "Rows that wait with their key").set_function(lambda: self.parked_rows)
        gauge("mark_behind_rows", "Row ids above the low-water mark").set_function(lambda: self.mark_behind_rows)
        gauge("mark_held_seconds", "Age of the transaction that holds the low-water mark").set_function(
            lambda: self.mark_held_seconds
        )
        gauge("closed_routes", "Routes that do not take messages now").set_function(lambda: len(self.closed_routes))
        gauge("broker_connected", "1 while the broker takes messages").set_function(lambda: self.broker == "connected")
        gauge("database_connected", "1 while the database answers").set_function(lambda: self.database == "connected")
        gauge("relays", "Relays that share the shards").set_function(lambda: self.relays)
        self._policy_faults = Gauge(
            "relay_policy_faults", "1 for a policy that makes RabbitMQ give up messages", ["queue", "policy"],
            registry=registry,
        )  # fmt: skip
        self.shards_held = gauge("shards_held", "Shards of the last claim")

    def turned(self) -> None:
        """Record that the main loop turned just now: the relay is live for `LIVE_SECONDS` more."""
        self._turned = time.monotonic()

    @property
    def mark_held_seconds(self) -> float:
        """For how long a transaction has held the mark; 0 without one, or if its beginning is not to be seen."""
        since = None if self.mark_held_by is None else self.mark_held_by.since
        return 0.0 if since is None else max(0.0, time.time() - since)

    @property
    def is_live(self) -> bool:
        return time.monotonic() - self._turned < LIVE_SECONDS

    @property
    def is_ready(self) -> bool:
        return self.broker == "connected" and self.database == "connected"

    def confirmed(self, latencies: list[float]) -> None:
        """Count confirmed messages, given for each the seconds from its row's time to its confirm."""
        self.published_rows += len(latencies)
        self.published.inc(len(latencies))
        self.commit_to_confirm.observe(latencies)
        self._latencies.extend(latencies[-SAMPLES:])

    def claimed(self, rows: int, shards: int, seconds: float) -> None:
        """Record a claim: how many rows it has, how many shards it locked, and how long it took."""
        self.shards_held.set(shards)
        self.poll_seconds.observe((seconds,))
        if rows:
            self.batch_rows.observe((rows,))

    def recorded(self, latencies: list[float], unrouted_rows: int, parked_rows: int) -> None:
        """Count the outcome of a claim; `latencies` are those of the rows that were sent, as for `confirmed`."""
        if latencies:
            self.confirmed(latencies)
        self.unrouted.inc(unrouted_rows)
        self.parked.inc(parked_rows)

    def count_failure(self, answer: Answer) -> None:
        """Count a message whose route failed, by the broker's answer."""
        match answer:
            case Answer.RETURNED:
                self.returned.inc()
            case Answer.NACKED:
                self.nacked.inc()
            case Answer.UNANSWERED:
                self.unanswered.inc()

    def show_policy_faults(self, faults: Sequence[LimitFault]) -> None:
        """Show these faults, and no others."""
        self.policy_faults = faults
        self._policy_faults.clear()
        for fault in faults:
            self._policy_faults.labels(fault.queue, fault.policy).set(1)

    def answered(self, seconds: float) -> None:
        """Record how many seconds the broker took to answer a wave."""
        self._answer_times.append(seconds)

    def status(self) -> dict[str, object]:
        """Return what /status shows, ready for JSON: seconds end in `_seconds`, milliseconds in `_ms`."""
        return {
            "backlog": self.backlog,
            "oldest_pending_seconds": round(self.oldest_pending_seconds, 3),
            "published": self.published_rows,
            "blocked_keys": self.blocked_keys,
            "broker": self.broker,
            "database": self.database,
            "confirm_p50_ms": _median_ms(self._latencies),
            "wave_p50_ms": _median_ms(self._answer_times),
            "parked_rows": self.parked_rows,
            "closed_routes": self.closed_routes,
            "policy_faults": [msgspec.structs.asdict(fault) for fault in self.policy_faults],
            "mark": self.mark,
            "mark_behind_rows": self.mark_behind_rows,
            "mark_held_by": self.mark_held_by,
            "relays": self.relays,
            "uptime_seconds": round(time.time() - self.started, 1),
        }


def _median_ms(seconds: Iterable[float]) -> float | None:
    values = list(seconds)
    return round(statistics.median(values) * 1000, 3) if values else None
