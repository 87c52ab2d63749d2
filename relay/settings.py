"""The settings, read once from the environment; every default is the production value."""

import os
import re
from collections.abc import Mapping
from typing import Annotated, Self

import msgspec

from relay.message import Route
from relay.setting_files import value_of

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}

Positive = Annotated[float, msgspec.Meta(gt=0)]
Count = Annotated[int, msgspec.Meta(ge=1)]


LONGEST_POLL_SECONDS = 2.0  # the session's idle_session_timeout, in outbox_table.py, leaves half a second beyond it


class BadSetting(Exception):
    """A setting is missing or not valid."""


def _variable(field: str) -> str:
    return field.upper() if field in ("database_url", "amqp_url") else f"RELAY_{field.upper()}"


class TopologySettings(msgspec.Struct, frozen=True, kw_only=True, rename=_variable):
    """The settings of `relay declare`: what RabbitMQ has to have."""

    amqp_url: str  # several, with commas between, are tried in turn
    exchanges: str = ""  # have to exist, with commas between
    required_queues: str = ""  # quorum queues that have to exist, and to be there at each confirm; commas between
    required_routes: str = ""  # exchange/routing key, commas between: have to be bound to one of the queues
    start_seconds: Positive = 30.0  # how long the servers may be away at start

    @classmethod
    def read(cls, environ: Mapping[str, str] = os.environ) -> Self:
        """Read the environment; raises BadSetting with one line that names the variable."""
        names = [_variable(field.name) for field in msgspec.structs.fields(cls)]
        try:
            given = {name: value for name in names if (value := value_of(environ, name))}
        except ValueError as error:
            raise BadSetting(str(error)) from None
        try:
            settings = msgspec.convert(given, cls, strict=False)
        except msgspec.ValidationError as error:
            raise BadSetting(_say(str(error))) from None
        settings.check()
        return settings

    def check(self) -> None:
        """Raise BadSetting if these settings do not say what to declare."""
        self._check_forms()
        if not (self.exchange_names or self.queue_names):
            raise BadSetting("RELAY_EXCHANGES, RELAY_REQUIRED_QUEUES: neither is set, so there is nothing to declare")
        if self.queue_names and not self.routes:
            raise BadSetting("RELAY_REQUIRED_ROUTES: it is not set, so the queue would be bound to nothing")
        if self.routes and len(self.queue_names) != 1:
            raise BadSetting(
                "RELAY_REQUIRED_QUEUES: expected the one queue that the routes are bound to; "
                "declare several one after the other, each with its routes"
            )

    def _check_forms(self) -> None:
        if not self.amqp_urls or not all(re.match(r"amqps?://", url) for url in self.amqp_urls):
            raise BadSetting("AMQP_URL: expected amqp://user:password@host:port/vhost, several with commas between")
        if not all(route.exchange and route.routing_key for route in self.routes):
            raise BadSetting("RELAY_REQUIRED_ROUTES: expected exchange/routing.key, several with commas between")

    @property
    def amqp_urls(self) -> tuple[str, ...]:
        return _listed(self.amqp_url)

    @property
    def exchange_names(self) -> tuple[str, ...]:
        return _listed(self.exchanges)

    @property
    def queue_names(self) -> tuple[str, ...]:
        return _listed(self.required_queues)

    @property
    def routes(self) -> tuple[Route, ...]:
        pairs = (item.partition("/") for item in _listed(self.required_routes))
        return tuple(Route(exchange, routing_key) for exchange, _, routing_key in pairs)


class Settings(TopologySettings, frozen=True, kw_only=True, rename=_variable):
    """The relay's settings; the variable of `batch_rows` is RELAY_BATCH_ROWS, and so on."""

    database_url: str  # libpq's form; several hosts are tried in turn
    host: str = "127.0.0.1"
    port: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 8001
    management_url: str = ""  # http://user:password@host:15672, commas between: bindings and policies are verified too

    batch_rows: Count = 2000  # rows of one claim
    batch_bytes: Count = 4 * 1024 * 1024  # of one claim, or one row: bounds memory and the bytes in the socket
    lanes: Annotated[int, msgspec.Meta(ge=1, le=8)] = 2  # claims at work at once while there is a backlog
    hold_seconds: Positive = 0.25  # no wave of a claim starts later than this
    confirm_seconds: Positive = 5.0  # the longest wait for confirms; the claiming transaction is open that long
    rate: Annotated[float, msgspec.Meta(ge=0)] = 0.0  # rows per second at most; 0 is no limit
    poll_seconds: Positive = 0.25  # what a lost NOTIFY costs; also proves that the relay's session is alive
    probe_seconds: Positive = 2.0  # the longest pause before a failed route is tried again
    retention: str = "7d"  # how long settled rows are kept
    upkeep_seconds: Positive = 60.0  # between two looks at the partitions
    partitions_ahead: Count = 10

    def check(self) -> None:
        """Raise BadSetting if a value is not valid, or does not fit another one."""
        self._check_forms()
        if not re.match(r"postgres(ql)?://", self.database_url):
            raise BadSetting("DATABASE_URL: expected postgresql://user@host:port/database")
        if not all(re.match(r"https?://", url) for url in self.management_urls):
            raise BadSetting(
                "RELAY_MANAGEMENT_URL: expected http://user:password@host:15672, several with commas between"
            )
        if self.poll_seconds > LONGEST_POLL_SECONDS:
            raise BadSetting(
                f"RELAY_POLL_SECONDS: at most {LONGEST_POLL_SECONDS:g}, since PostgreSQL ends a session that is silent "
                "for longer"
            )
        if self.confirm_seconds > 60:
            raise BadSetting("RELAY_CONFIRM_SECONDS: at most 60, since a transaction is open that long")
        if self.routes and not (self.management_urls and self.queue_names):
            raise BadSetting("RELAY_REQUIRED_ROUTES: needs RELAY_REQUIRED_QUEUES, and RELAY_MANAGEMENT_URL to see them")
        _ = self.retention_seconds

    @property
    def management_urls(self) -> tuple[str, ...]:
        return _listed(self.management_url)

    @property
    def retention_seconds(self) -> float:
        match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", self.retention)
        if match is None:
            raise BadSetting(f"RELAY_RETENTION: expected something like 7d, 12h, 30m or 90s, got {self.retention!r}")
        return float(match[1]) * _UNITS[match[2] or "s"]


def _listed(value: str) -> tuple[str, ...]:
    return tuple(item.strip() for item in value.split(",") if item.strip())


def _say(error: str) -> str:
    """Turn msgspec's message into one line that begins with the variable."""
    missing = re.fullmatch(r"Object missing required field `(\w+)`", error)
    if missing:
        return f"{missing[1]}: it is not set"
    message, _, path = error.partition(" - at `$.")
    return f"{path.rstrip('`')}: {message[:1].lower()}{message[1:]}"
