"""The process: `python -m relay` carries messages; with a word behind it, it is the operators' command."""

import asyncio
import logging
import signal
import sys
import time

from relay.backoff import backoff_seconds
from relay.claim_session import SequenceCached
from relay.database import DatabaseLost, SchemaMissing, SessionShared, connect, deadline, require_own_session
from relay.forward import Forwarder
from relay.guard import Guard
from relay.health import serve
from relay.management import ManagementUnavailable
from relay.operate import operate, parse
from relay.outbox_table import SESSION, read_mark
from relay.parallel_claims import ParallelClaims
from relay.policies import watch_policies
from relay.publisher import BrokerLost, BrokerRefused, Publisher
from relay.settings import BadSetting, Settings
from relay.severing import close
from relay.state import RelayState
from relay.topology import TopologyWrong, verify
from relay.upkeep import keep
from relay.watch import watch

log = logging.getLogger("relay")

BAD_SETTING = 2
CANNOT_START = 1


class CannotStart(Exception):
    """The relay needs something that is missing, and that will not appear by itself."""


async def forward_until_stopped(settings: Settings) -> None:
    """Run the relay: start, forward, stop when a signal says so."""
    stop, wake = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, stop.set)
    state = RelayState()
    # Each claimer has a connection of its own: flow control and a lost channel then concern one claim.
    # With a rate limit, one is enough.
    count = 1 if settings.rate else settings.lanes
    publishers = [Publisher(settings.amqp_urls, settings.confirm_seconds) for _ in range(count)]
    try:
        server = await serve(state, settings.host, settings.port)
    except OSError as error:
        raise CannotStart(
            f"RELAY_HOST, RELAY_PORT: cannot listen on {settings.host}:{settings.port}: {error}"
        ) from error
    async with server:
        try:
            guards = [Guard(settings, publisher) for publisher in publishers]
            await _find_servers(settings, publishers[0], guards[0], state, stop)
            if not stop.is_set():
                host, port = server.sockets[0].getsockname()[:2]
                log.info("started: health on %s:%s, batches of %d rows", host, port, settings.batch_rows)
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(watch(settings.database_url, state, wake, stop), name="relay-watch")
                    tasks.create_task(keep(settings, state, stop), name="relay-upkeep")
                    if settings.management_urls:
                        tasks.create_task(watch_policies(settings, publishers[0], state, stop), name="relay-policies")
                    claims = ParallelClaims(settings)
                    for number, (publisher, guard) in enumerate(zip(publishers, guards, strict=True), 1):
                        forwarder = Forwarder(settings, publisher, guard, state, wake, claims, is_first=number == 1)
                        tasks.create_task(forwarder.run(stop), name=f"relay-forward-{number}")
        finally:
            for publisher in publishers:
                await publisher.close()
    log.info("stopped by a signal: %d messages published", state.published_rows)


async def _find_servers(
    settings: Settings, publisher: Publisher, guard: Guard, state: RelayState, stop: asyncio.Event
) -> None:
    """Wait for database and broker, and verify schema and topology.

    Raises CannotStart after `start_seconds` without an answer, and at once if RabbitMQ refuses password or vhost;
    SessionShared, SchemaMissing, TopologyWrong or ManagementUnavailable.
    """
    end = time.monotonic() + settings.start_seconds
    tries = 0
    is_proven = False
    while not stop.is_set():
        state.turned()
        tries += 1
        try:
            if not is_proven:
                await require_own_session(settings.database_url)
                is_proven = True
            conn = await connect(settings.database_url, "relay-start", SESSION)
            try:
                with deadline(conn, 3.0):
                    await read_mark(conn)
                state.database = "connected"
                await verify(await publisher.connect(), settings)
                complaint = await guard.complete(conn)
            finally:
                await close(conn)
            if complaint:
                raise TopologyWrong(complaint)
            state.broker = "connected"
        except DatabaseLost as lost:
            complaint = (
                f"PostgreSQL did not answer within {settings.start_seconds:g} s ({lost}): is DATABASE_URL right?"
            )
        except BrokerRefused as refused:
            raise CannotStart(str(refused)) from refused
        except BrokerLost as lost:
            publisher.drop()
            complaint = f"RabbitMQ did not answer within {settings.start_seconds:g} s ({lost}): is AMQP_URL right?"
        else:
            return
        if time.monotonic() > end:
            raise CannotStart(complaint)
        await asyncio.sleep(backoff_seconds(tries, 0.1, 1.0))


def main() -> None:
    """Run the relay or a command; if it cannot, exit with one line on stderr."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    # The relay logs the loss of a connection itself, once.
    logging.getLogger("aiormq").setLevel(logging.CRITICAL)
    logging.getLogger("psycopg").setLevel(logging.CRITICAL)
    asked = parse(sys.argv[1:])
    try:
        if asked.command not in (None, "run"):
            sys.exit(operate(asked))
        asyncio.run(forward_until_stopped(Settings.read()))
    except BadSetting as error:
        print(f"relay: {error}", file=sys.stderr)
        sys.exit(BAD_SETTING)
    except (CannotStart, SessionShared, SchemaMissing, TopologyWrong, ManagementUnavailable, SequenceCached) as error:
        print(f"relay: {error}", file=sys.stderr)
        sys.exit(CANNOT_START)
    except BaseExceptionGroup as group:
        known = group.subgroup((SchemaMissing, SequenceCached))
        if known is None:
            raise
        print(f"relay: {_leaf(known)}", file=sys.stderr)
        sys.exit(CANNOT_START)


def _leaf(group: BaseException) -> BaseException:
    while isinstance(group, BaseExceptionGroup):
        group = group.exceptions[0]
    return group


if __name__ == "__main__":
    main()
