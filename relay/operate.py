"""The operators' commands: list blocked keys, retry or skip them, requeue what was sent. Changes leave an audit row."""

import argparse
import asyncio
import datetime
import importlib.resources
import os
import sys
import time

import msgspec

from relay import outbox_repairs
from relay.actor import actor
from relay.backoff import backoff_seconds
from relay.database import Connection, DatabaseLost, connect, deadline
from relay.outbox_repairs import NotBlocked, RequeueFilter
from relay.publisher import BrokerLost, BrokerRefused, Publisher
from relay.settings import BadSetting, TopologySettings
from relay.severing import close
from relay.time_ago import parse_moment
from relay.topology import TopologyWrong, declare

COMMAND_SECONDS = 60.0
CHUNK = 500
WRITER_IDLE_SECONDS = 60  # a writer's transaction may be idle so long
DECLARE_SECONDS = 15.0  # of one try to connect and declare


def parse(words: list[str]) -> argparse.Namespace:
    """Parse the words of the command line; its `command` is None without one. Exits with 2 on a mistake."""
    about = (
        "Carry an outbox to RabbitMQ, or repair what is blocked. "
        "Reads DATABASE_URL; `run` also AMQP_URL and RELAY_…; `declare` only these."
    )
    parser = argparse.ArgumentParser(prog="relay", description=about)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    commands.add_parser("run", help="carry messages until SIGTERM or SIGINT (also without a command)")
    blocked = commands.add_parser("blocked", help="list the keys that wait for an operator")
    blocked.add_argument("--limit", type=int, default=100, help="keys to list at most (default 100)")
    blocked.add_argument("--json", action="store_true", help="one JSON object for each key")
    retry = commands.add_parser("retry", help="try a blocked key again")
    retry.add_argument("keys", metavar="KEY", nargs="*")
    retry.add_argument("--all", action="store_true", help="every blocked key")
    skip = commands.add_parser("skip", help="skip one parked row for good; its key goes on with the next one")
    skip.add_argument("row_id", metavar="ID", type=int)
    skip.add_argument("--reason", required=True)
    requeue = commands.add_parser("requeue", help="send rows again that were sent, in order")
    requeue.add_argument("--since", type=_moment, required=True, help="2026-11-23T18:00:00Z, or 15m, 2h, 1d ago")
    requeue.add_argument("--type", dest="routing_key", help="only this routing key")
    requeue.add_argument("--key", help="only this key")
    requeue.add_argument("--rate", type=float, default=1000.0, help="rows a second (default 1000), once all are parked")
    requeue.add_argument("--dry-run", action="store_true", help="only count")
    schema = commands.add_parser("schema", help="print the table's DDL as one transaction")
    schema.add_argument(
        "--writer", metavar="ROLE", help="also grant this role what a writer needs, and create it first"
    )
    commands.add_parser("declare", help="declare the exchanges, the queue and its bindings that the settings name")
    return parser.parse_args(words)


def operate(asked: argparse.Namespace) -> int:
    """Run the command; return the exit code. Raises BadSetting."""
    if asked.command == "schema":
        print(schema(asked.writer))
        return 0
    if asked.command == "declare":
        return _declare(TopologySettings.read())
    url = os.environ.get("DATABASE_URL")
    if not url:
        raise BadSetting("DATABASE_URL: it is not set")
    try:
        return asyncio.run(_command(url, asked))
    except (DatabaseLost, NotBlocked) as error:
        print(f"relay {asked.command}: {error}", file=sys.stderr)
        return 1


async def _command(url: str, asked: argparse.Namespace) -> int:
    conn = await connect(url, "relay-operator", outbox_repairs.SESSION)
    try:
        match asked.command:
            case "blocked":
                return await _blocked(conn, asked.limit, asked.json)
            case "retry":
                return await _retry(conn, asked.keys, asked.all)
            case "skip":
                return await _skip(conn, asked.row_id, asked.reason)
            case _:
                chosen = RequeueFilter(since=asked.since, routing_key=asked.routing_key, key=asked.key)
                return await _requeue(conn, chosen, asked.rate, asked.dry_run)
    finally:
        await close(conn)


async def _blocked(conn: Connection, limit: int, as_json: bool) -> int:
    with deadline(conn, COMMAND_SECONDS):
        found = await outbox_repairs.blocked(conn, limit)
    for item in found:
        if as_json:
            print(msgspec.json.encode(item).decode())
        else:
            since = item.since.astimezone(datetime.UTC).isoformat(timespec="seconds")
            print(f"{item.key}  row {item.row_id}  {item.exchange}/{item.routing_key}  since {since}")
            print(f"    {item.reason}; {item.rows} rows wait")
    if not found and not as_json:
        print("no key is blocked")
    return 0


async def _retry(conn: Connection, keys: list[str], all_of_them: bool) -> int:
    if all_of_them == bool(keys):
        raise BadSetting("retry: name the keys, or say --all")
    with deadline(conn, COMMAND_SECONDS):
        chosen = await outbox_repairs.blocked_keys(conn) if all_of_them else keys
    tried = 0
    for key in chosen:
        try:
            with deadline(conn, COMMAND_SECONDS):
                await outbox_repairs.retry(conn, key, actor(conn.info.user))
            tried += 1
        except NotBlocked:
            if not all_of_them:  # with --all, another operator may have retried this one
                raise
    print(f"{tried} keys are tried again")
    return 0


async def _skip(conn: Connection, row_id: int, reason: str) -> int:
    if not reason.strip():
        raise BadSetting("skip: --reason may not be empty, it is what the audit keeps")
    with deadline(conn, COMMAND_SECONDS):
        key = await outbox_repairs.skip(conn, row_id, reason, actor(conn.info.user))
    print(f"row {row_id} is skipped; key {key!r} goes on")
    return 0


async def _requeue(conn: Connection, chosen: RequeueFilter, rate: float, dry_run: bool) -> int:
    if rate <= 0:
        raise BadSetting("requeue: --rate is a number of rows a second, above 0")
    with deadline(conn, COMMAND_SECONDS):
        ids = await outbox_repairs.ids_since(conn, chosen.since)
        audit_id = None if dry_run else await outbox_repairs.open_requeue(conn, chosen, actor(conn.info.user))
    # All of a key first, then its first row: what is newer may not go in between.
    moved = 0
    while True:
        began = time.monotonic()
        with deadline(conn, COMMAND_SECONDS):
            limit = 10_000 if audit_id is None else CHUNK
            found = await outbox_repairs.sent_rows(conn, chosen, ids, limit)
            if not found.ids:
                break
            ids = ids._replace(above=found.ids[-1])
            moved += len(found.ids) if audit_id is None else await outbox_repairs.park_sent(conn, audit_id, found)
        if audit_id is not None:
            await asyncio.sleep(time.monotonic() - began)  # the shards are the relays' for half of the time
    if audit_id is not None:
        await _resume(conn, audit_id, rate)
    print(f"{moved} rows {'would be' if dry_run else 'are'} sent again")
    return 0


async def _resume(conn: Connection, audit_id: int, rate: float) -> None:
    limit = max(1, min(CHUNK, int(rate / 5)))
    resumed_rows, began = 0, time.monotonic()
    while True:
        with deadline(conn, COMMAND_SECONDS):
            resumed = await outbox_repairs.resume_keys(conn, audit_id, limit)
        if not resumed.keys:
            return
        resumed_rows += resumed.rows
        await asyncio.sleep(max(0.0, began + resumed_rows / rate - time.monotonic()))


def _declare(settings: TopologySettings) -> int:
    try:
        asyncio.run(_declare_when_it_answers(settings))
    except (BrokerLost, TopologyWrong) as error:
        print(f"relay declare: {error}", file=sys.stderr)
        return 1
    for name in settings.exchange_names:
        print(f"exchange {name!r} is there")
    for name in settings.queue_names:
        print(f"queue {name!r} is there, bound to {', '.join(map(str, settings.routes))}")
    return 0


async def _declare_when_it_answers(settings: TopologySettings) -> None:
    """Declare; try again until `start_seconds` are over. Raises BrokerLost and TopologyWrong."""
    publisher = Publisher(settings.amqp_urls, DECLARE_SECONDS, "relay-declare")
    end = time.monotonic() + settings.start_seconds
    tries = 0
    while True:
        tries += 1
        try:
            async with asyncio.timeout(DECLARE_SECONDS):
                await declare(await publisher.connect(), settings)
            await publisher.close()
        except BrokerRefused:
            raise
        except (BrokerLost, TimeoutError) as error:
            publisher.drop()
            if time.monotonic() > end:
                reason = str(error) or f"no answer within {DECLARE_SECONDS:g} s"
                raise BrokerLost(
                    f"RabbitMQ did not answer within {settings.start_seconds:g} s ({reason}): is AMQP_URL right?"
                ) from error
        else:
            return
        await asyncio.sleep(backoff_seconds(tries, 0.1, 1.0))


def schema(writer: str | None = None) -> str:
    """Return the DDL of the outbox, and the grants of its writer if it has a role of its own, as one transaction."""
    ddl = importlib.resources.files("relay").joinpath("schema.sql").read_text()
    grants = "" if writer is None else f"{_grants(writer)}\n\n"
    return f"""-- Load this as the role that the relay connects as: only an owner may detach a partition and drop it.
BEGIN;

{ddl.strip()}

{grants}COMMIT;"""


def _grants(writer: str) -> str:
    columns = "event_id, key, exchange, routing_key, required, content_type, headers, body"
    role, literal = _quoted(writer), "'" + writer.replace("'", "''") + "'"
    tag = "writer"
    while f"${tag}$" in writer:
        tag += "_"
    return f"""-- A writer inserts into these columns alone: it draws no ids, and looks at nothing.
DO ${tag}$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = {literal}) THEN
        CREATE ROLE {role} NOLOGIN;
    END IF;
    -- A writer that leaves its transaction open holds the low-water mark. The server ends sessions that log in as this
    -- role and do so; members of the role need a setting of their own.
    IF NOT EXISTS (SELECT FROM pg_db_role_setting s JOIN pg_roles r ON r.oid = s.setrole, unnest(s.setconfig) AS given
                   WHERE r.rolname = {literal} AND given LIKE 'idle_in_transaction_session_timeout=%') THEN
        EXECUTE format('ALTER ROLE %I IN DATABASE %I SET idle_in_transaction_session_timeout = %L',
                       {literal}, current_database(), '{WRITER_IDLE_SECONDS}s');
    END IF;
EXCEPTION WHEN insufficient_privilege OR reserved_name THEN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = {literal}) THEN
        RAISE;
    END IF;
    RAISE WARNING 'set idle_in_transaction_session_timeout for the writers yourself: %', SQLERRM;
END
${tag}$;

GRANT INSERT ({columns}) ON outbox TO {role};
GRANT USAGE ON SEQUENCE outbox_id_seq TO {role};
GRANT EXECUTE ON FUNCTION outbox_add_partitions(integer) TO {role};"""  # noqa: S608  # both names are quoted


def _quoted(role: str) -> str:
    return '"' + role.replace('"', '""') + '"'


def _moment(text: str) -> datetime.datetime:
    """Parse an option's time; raise ArgumentTypeError, whose message argparse shows."""
    try:
        return parse_moment(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
