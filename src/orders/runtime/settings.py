"""Settings: one frozen struct for each process, read once from the environment."""

import os
import sys
from collections.abc import Mapping
from typing import Annotated, Literal, Self

import msgspec
from msgspec import Meta

from orders.runtime.setting_files import value_of
from orders.runtime.timeouts import PATIENCE_SECONDS

DatabaseUrl = Annotated[
    str,
    Meta(pattern=r"^postgres(ql)?://", description="libpq URL of PostgreSQL; several hosts are tried in turn"),
]
AmqpUrl = Annotated[
    str, Meta(pattern=r"^amqps?://", description="AMQP URL of RabbitMQ; several, comma-separated, are tried in turn")
]
ManagementUrl = Annotated[
    str,
    Meta(
        pattern=r"^(https?://|$)",
        description="URL of RabbitMQ's management interface, or several: shows policies that lose messages",
    ),
]
Host = Annotated[str, Meta(min_length=1, description="address to listen on")]
Port = Annotated[int, Meta(ge=1, le=65535, description="port to listen on")]
Seconds = Annotated[float, Meta(ge=0)]
LogLevel = Annotated[str, Meta(pattern="^(DEBUG|INFO|WARNING|ERROR)$", description="DEBUG, INFO, WARNING or ERROR")]


class SettingsError(Exception):
    """A setting is missing or wrong; the message names it."""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Each field is the environment variable of the same name in capitals, or the file that NAME_FILE names."""

    @classmethod
    def read(cls, environ: Mapping[str, str] = os.environ) -> Self:
        """Read the fields from `environ`; raise SettingsError with one line that names what is wrong."""
        values = {}
        for field in msgspec.structs.fields(cls):
            name = field.name.upper()
            try:
                value = value_of(environ, name)
            except ValueError as error:
                raise SettingsError(str(error)) from None
            if value is not None:
                values[field.name] = value
            elif field.required:
                raise SettingsError(f"{name} is not set: {describe(field.type)}")
        for field in msgspec.structs.fields(cls):
            if field.name in values:
                try:
                    msgspec.convert(values[field.name], field.type, strict=False)
                except msgspec.ValidationError as error:
                    raise SettingsError(f"{field.name.upper()} is wrong: {error}") from None
        return msgspec.convert(values, cls, strict=False)

    @classmethod
    def read_or_exit(cls, program: str, environ: Mapping[str, str] = os.environ) -> Self:
        """Read from the environment, or end the process with one line and code 2."""
        try:
            return cls.read(environ)
        except SettingsError as error:
            print(f"{program}: {error}", file=sys.stderr)
            sys.exit(2)


def describe(field_type: object) -> str:
    """Return what a setting is for, as its type says."""
    for meta in getattr(field_type, "__metadata__", ()):
        if isinstance(meta, Meta) and meta.description:
            return meta.description
    return ""


class ApiSettings(Settings, frozen=True, kw_only=True):
    """Settings of `python -m orders.app`."""

    database_url: DatabaseUrl
    orders_host: Host = "127.0.0.1"
    orders_port: Port = 8000
    orders_writers: Annotated[
        int, Meta(ge=1, le=2, description="database connections that write, each one batch at a time")
    ] = 2
    orders_batch_rows: Annotated[int, Meta(ge=1, le=1000, description="orders in one transaction at most")] = 200
    orders_batch_bytes: Annotated[int, Meta(ge=1, description="bytes of orders in one transaction at most")] = 4 << 20
    orders_queue_rows: Annotated[
        int, Meta(ge=1, description="orders that may wait for a transaction; beyond it, 503")
    ] = 4000
    orders_queue_bytes: Annotated[
        int, Meta(ge=1 << 20, description="bytes of orders that may wait for a transaction; beyond it, 503")
    ] = 64 << 20
    orders_patience: Annotated[
        float, Meta(gt=0, le=60, description="seconds that a request waits for the database; then 503")
    ] = PATIENCE_SECONDS
    orders_auth: Annotated[
        Literal["optional", "required"],
        Meta(description="`optional`: who has no API key is the anonymous client; `required`: 401"),
    ] = "optional"
    orders_client_share: Annotated[
        float, Meta(gt=0, le=1, description="the part of an api's room that one client may take; beyond it, 429")
    ] = 0.5
    orders_idempotency_retention: Annotated[
        float, Meta(ge=60, description="seconds for which an Idempotency-Key is remembered")
    ] = 7 * 86400.0
    orders_max_outbox_age: Annotated[
        float, Meta(ge=0, description="seconds; placements get 503 while the oldest unsent event is older; 0: never")
    ] = 0.0
    orders_grace: Annotated[float, Meta(ge=0, le=25, description="seconds for requests in hand after SIGTERM")] = 12
    log_level: LogLevel = "INFO"


class WorkerSettings(Settings, frozen=True, kw_only=True):
    """Settings of `python -m orders.worker`."""

    database_url: DatabaseUrl
    amqp_url: AmqpUrl
    orders_management_url: ManagementUrl = ""
    worker_host: Host = "127.0.0.1"
    worker_port: Port = 8002
    worker_concurrency: Annotated[
        int, Meta(ge=1, le=60000, description="orders in hand at once: the prefetch count of the consumer")
    ] = 1300
    worker_grace: Annotated[float, Meta(ge=0, le=25, description="seconds for orders in hand after SIGTERM")] = 12
    orders_handler: Annotated[
        str,
        Meta(pattern=r"^[\w.]+:\w+$", description="the work itself: module:function, a function of the order"),
    ] = "orders.handlers:wait_a_little"
    work_timeout: Annotated[
        float, Meta(gt=0, description="seconds after which a handler is cut off, which counts as its failure")
    ] = 60
    work_max_attempts: Annotated[
        int, Meta(ge=1, le=1000, description="failures of the handler itself before the order is failed")
    ] = 5
    work_connections: Annotated[
        int, Meta(ge=1, le=100, description="transactions open at once, where the handler takes a connection")
    ] = 10
    work_threads: Annotated[
        int, Meta(ge=1, le=1000, description="threads at once, where the handler is a plain function, not async")
    ] = 16
    log_level: LogLevel = "INFO"


class DatabaseSettings(Settings, frozen=True, kw_only=True):
    """Settings of the commands that work on the database."""

    database_url: DatabaseUrl


class ClientSettings(Settings, frozen=True, kw_only=True):
    """Settings of the commands that call the service as a client does."""

    base_url: str = ""
    orders_api_key: str = ""


class TopologySettings(Settings, frozen=True, kw_only=True):
    """Settings of `orders topology`."""

    amqp_url: AmqpUrl


class RolesSettings(Settings, frozen=True, kw_only=True):
    """Settings of `orders roles`."""

    database_url: Annotated[
        str, Meta(pattern=r"^(postgres(ql)?://|$)", description="libpq URL of an administrator of PostgreSQL")
    ] = ""
    management_url: Annotated[
        str, Meta(pattern=r"^(https?://|$)", description="management interface of RabbitMQ, with an administrator")
    ] = ""
    amqp_url: Annotated[str, Meta(pattern=r"^(amqps?://|$)", description="AMQP URL of RabbitMQ, for the vhost")] = ""
    orders_api_password: str = ""
    orders_worker_password: str = ""
    orders_relay_password: str = ""
    orders_operator_password: str = ""
    orders_read_password: str = ""


class ReconcileSettings(Settings, frozen=True, kw_only=True):
    """Settings of `orders reconcile`."""

    database_url: DatabaseUrl
    amqp_url: Annotated[str, Meta(pattern=r"^(amqps?://|$)", description="AMQP URL of RabbitMQ, for --broker")] = ""


class DoctorSettings(Settings, frozen=True, kw_only=True):
    """Settings of `orders doctor`, which looks at whatever it is told of."""

    database_url: Annotated[str, Meta(pattern=r"^(postgres(ql)?://|$)", description="libpq URL of PostgreSQL")] = ""
    amqp_url: Annotated[str, Meta(pattern=r"^(amqps?://|$)", description="AMQP URL of RabbitMQ")] = ""
    orders_management_url: ManagementUrl = ""
    base_url: str = ""
    api_urls: str = ""
    relay_urls: str = ""
    worker_urls: str = ""


class SubscriberSettings(Settings, frozen=True, kw_only=True):
    """Settings of a consumer that is built on orders/subscriber.py."""

    database_url: DatabaseUrl
    amqp_url: AmqpUrl
    subscriber_at_once: Annotated[int, Meta(ge=1, le=100, description="events handled side by side")] = 4
    subscriber_timeout: Annotated[float, Meta(gt=0, description="seconds after which an event is tried again")] = 10
    subscriber_grace: Annotated[float, Meta(ge=0, le=25, description="seconds for events in hand after SIGTERM")] = 10
    inbox_days: Annotated[
        int, Meta(ge=1, le=365, description="days for which event ids are remembered; the same for all consumers")
    ] = 7
    log_level: LogLevel = "INFO"


class WaitSettings(Settings, frozen=True, kw_only=True):
    """Settings of the bundled handler."""

    work_min_seconds: Annotated[float, Meta(ge=0, description="shortest wait of the bundled handler, seconds")] = 0.01
    work_max_seconds: Annotated[float, Meta(ge=0, description="longest wait of the bundled handler, seconds")] = 10

    def __post_init__(self) -> None:
        if self.work_max_seconds < self.work_min_seconds:
            raise SettingsError("WORK_MAX_SECONDS is wrong: it is less than WORK_MIN_SECONDS")
