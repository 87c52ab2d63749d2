"""Each process may do its own work and nothing else: derived from the statements that the processes really send."""

import asyncio
import re
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import LiteralString, NamedTuple

import aiormq
import aiormq.exceptions
import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from dev.sandbox import roles
from dev.sandbox.servers import Servers
from dev.sandbox.system import Counts, System
from orders.database import (
    api_keys_table,
    cancel_orders,
    claim_orders,
    dead_letters_table,
    idempotency_keys_table,
    inbox,
    outbox_table,
    postpone_orders,
    resend_messages,
    retries_table,
    stragglers_table,
)
from orders.database.roles import ROLES
from orders.model.ids import uuid7
from orders.tools.reconcile import queries
from relay import outbox_repairs
from tests import places, warm
from tests.eventually import eventually
from tests.journey import shoppers
from tests.statements_heard import READ_OR_WRITE, hearing

# What a process does too seldom for a short journey: on the edge of a partition, once a minute, after a death,
# before a worker is quicker.
SELDOM: Mapping[str, Iterable[str | ModuleType]] = {
    "orders_api": (
        outbox_table.ADD_PARTITIONS,
        cancel_orders.CANCEL,
        idempotency_keys_table.EXPIRE,
        api_keys_table.USED,
    ),
    "orders_worker": (
        outbox_table.ADD_PARTITIONS,
        outbox_table.OLDEST,
        claim_orders,
        dead_letters_table.INSERT,
        dead_letters_table.COUNT_ARRIVAL,
        dead_letters_table.MARK_POISON,
        dead_letters_table.TAKE_POISON_MARK,
        dead_letters_table.FAIL_ORDER,
        dead_letters_table.BRING_BACK,
        postpone_orders,
        resend_messages,
        retries_table,
        stragglers_table,
    ),
    "orders_operator": (outbox_table.ADD_PARTITIONS, outbox_repairs, queries),
}
# Of these EXPLAIN asks for no right: an id is drawn when a row is written.
UNSEEN = {("outbox_id_seq", "USAGE"), ("outbox_turn_seq", "USAGE")}

GRANTED: LiteralString = """
    SELECT r.rolname, 'TABLE', c.oid::regclass::text, '', a.privilege_type
    FROM pg_class c, aclexplode(c.relacl) AS a JOIN pg_roles r ON r.oid = a.grantee
    WHERE c.relnamespace = 'public'::regnamespace AND c.relkind <> 'S' AND c.relowner <> r.oid
    UNION ALL
    SELECT r.rolname, 'TABLE', c.oid::regclass::text, t.attname, a.privilege_type
    FROM pg_class c JOIN pg_attribute t ON t.attrelid = c.oid, aclexplode(t.attacl) AS a
    JOIN pg_roles r ON r.oid = a.grantee
    WHERE c.relnamespace = 'public'::regnamespace
    UNION ALL
    SELECT r.rolname, 'SEQUENCE', c.oid::regclass::text, '', a.privilege_type
    FROM pg_class c, aclexplode(c.relacl) AS a JOIN pg_roles r ON r.oid = a.grantee
    WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'S' AND c.relowner <> r.oid
    UNION ALL
    SELECT r.rolname, 'FUNCTION', p.oid::regprocedure::text, '', a.privilege_type
    FROM pg_proc p, aclexplode(p.proacl) AS a JOIN pg_roles r ON r.oid = a.grantee
    WHERE p.pronamespace = 'public'::regnamespace AND p.proowner <> r.oid
"""

FORBIDDEN = (
    "CREATE TABLE mine ()",
    "DROP TABLE orders",
    "TRUNCATE orders",
    "ALTER TABLE orders ADD COLUMN mine text",
    "UPDATE orders SET total_minor = 0",
    "UPDATE client_keys SET client = 'somebody'",
    "UPDATE idempotency_keys SET answer = ''",
    "DELETE FROM dead_letters",
    "DELETE FROM dead_letter_audit",
    "UPDATE dead_letter_audit SET actor = 'nobody'",
    "DELETE FROM outbox_audit",
    "UPDATE outbox_audit SET actor = 'nobody'",
    "UPDATE outbox SET body = ''",
    "DROP TABLE inbox",
    "SELECT inbox_keep(1)",
    "CREATE ROLE mine",
    "ALTER ROLE orders_api SUPERUSER",
    "COPY orders TO PROGRAM 'true'",
    "SELECT pg_read_file('PG_VERSION')",
)
OWN = {  # of the forbidden ones, the outbox is the relay's own
    "orders_relay": {
        "CREATE TABLE mine ()",
        "DELETE FROM outbox_audit",
        "UPDATE outbox_audit SET actor = 'nobody'",
        "UPDATE outbox SET body = ''",
    },
}
ORDER = {"customer_id": "a", "currency": "EUR", "lines": [{"sku": "A", "quantity": 1, "unit_price_minor": 1}]}


class Grant(NamedTuple):
    """One privilege of one role, on a whole object or on a column of it."""

    role: str
    kind: str
    name: str
    column: str
    privilege: str

    def revoke(self) -> sql.Composed:
        """The statement that takes it away."""
        privilege = self.privilege + (f" ({self.column})" if self.column else "")
        text = f"REVOKE {privilege} ON {self.kind} {self.name} FROM {self.role}"
        return sql.SQL(text).format()  # from PostgreSQL's own catalogue


async def work(system: System, environ: Mapping[str, str]) -> None:
    """Have every role do its work once: orders that end in each way, keys, lists, and the operators' commands."""
    operator = dict(environ) | system.urls_of("operator")

    def run(*words: str) -> str:
        done = warm.run([sys.executable, "-m", *words], env=operator)
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout

    key = (await asyncio.to_thread(run, "orders.cli", "clients", "add", "shop")).strip()
    async with shoppers.client(system.base_url) as http:
        http.headers["Authorization"] = f"Bearer {key}"
        references = ["done", "again", "refused", "refused"]
        placed = [
            (
                await http.post(
                    "/orders", json={**ORDER, "reference": each}, headers={"Idempotency-Key": f"k-{number}"}
                )
            ).json()["order_id"]
            for number, each in enumerate(references)
        ]
        repeat = {"Idempotency-Key": "k-0"}
        assert (await http.post("/orders", json={**ORDER, "reference": "done"}, headers=repeat)).is_success
        slow = (await http.post("/orders", json={**ORDER, "reference": "slow"})).json()["order_id"]
        cancelled = (await http.post("/order/place")).json()["order_id"]
        await http.post(f"/orders/{cancelled}/cancel", headers={"Idempotency-Key": "c-0"})

        async def have_ended() -> bool:
            found = (await http.get("/orders", params={"customer_id": "a"})).json()["orders"]
            return {each["status"] for each in found if each["order_id"] in placed} == {"done", "failed"}

        await eventually(have_ended, 20)
        for filters in ({}, {"reference": "done"}, {"status": "failed"}):
            assert (await http.get("/orders", params=filters)).is_success
        async with http.stream("GET", f"/orders/{slow}/events") as stream:
            async for line in stream.aiter_lines():
                if "done" in line:
                    break
        assert (await http.get(f"/orders/{placed[0]}", headers={"Prefer": "wait=1"})).is_success

    for words in (
        ("dead", "list"),
        ("dead", "show", placed[2]),
        ("dead", "redrive", "--id", placed[2]),
        ("dead", "discard", placed[3], "--reason", "a test"),
        ("get", placed[2], "--attempts", "--to", system.base_url),
        ("clients", "list"),
        ("clients", "roll", "shop", "--overlap", "1h"),
        ("clients", "revoke", "shop"),
        ("reconcile", "--broker", "--grace", "60"),
        ("purge", "--older-than", "1d"),
        ("purge", "--older-than", "1d", "--anonymise"),
    ):
        await asyncio.to_thread(run, "orders.cli", *words)
    await asyncio.to_thread(run, "relay", "blocked")
    await asyncio.to_thread(run, "relay", "requeue", "--since", "1h")
    await asyncio.to_thread(warm.run, [sys.executable, "-m", "orders.cli", "doctor"], env=operator)


def explainable(text: str) -> str:
    """The statement with NULL in the place of each parameter: EXPLAIN asks for the same rights."""
    return "EXPLAIN " + re.sub(r"\$\d+", "NULL", text)


def as_sent(text: str) -> str:
    """A statement of the source as psycopg sends it, but for the numbers of its parameters."""
    return re.sub(r"%%|%\(\w+\)[bst]|%[bst]", lambda found: "%" if found[0] == "%%" else "$1", text)


def seldom(conn: psycopg.Connection, role: str) -> set[str]:
    """The whole statements among those that a short journey may leave out; a module has parts of some, too."""
    found = set()
    for each in SELDOM[role]:
        if isinstance(each, str):
            found.add(as_sent(each))
            continue
        for text in filter(READ_OR_WRITE.match, (value for value in vars(each).values() if isinstance(value, str))):
            with suppress(psycopg.errors.UndefinedTable, psycopg.errors.UndefinedColumn, psycopg.errors.SyntaxError):
                conn.execute(explainable(as_sent(text)))
                found.add(as_sent(text))
    return found


def refused(conn: psycopg.Connection, role: str, statements: Iterable[str]) -> str | None:
    """The first of the statements that the role may not run, by EXPLAIN."""
    for text in statements:
        try:
            with conn.transaction(force_rollback=True):
                conn.execute(sql.SQL("SET LOCAL ROLE {}").format(sql.Identifier(role)))
                conn.execute(explainable(text))
        except psycopg.errors.InsufficientPrivilege:
            return text
    return None


def unneeded(conn: psycopg.Connection, statements: Mapping[str, set[str]]) -> list[Grant]:
    """The privileges without which every statement of their role still runs."""
    found = []
    for grant in (Grant(*row) for row in conn.execute(GRANTED).fetchall()):
        if grant.role not in statements or (grant.name, grant.privilege) in UNSEEN:
            continue
        name = grant.name.partition("(")[0]
        with conn.transaction(force_rollback=True):
            conn.execute(grant.revoke())
            if refused(conn, grant.role, (text for text in statements[grant.role] if name in text)) is None:
                found.append(grant)
    return found


async def test_each_role_has_what_it_uses(servers: Servers, template: str, tmp_path: Path) -> None:
    """
    Api, worker and operator have every privilege that their statements need, and none without which all of them run;
    the relay has what it owns; nothing but the set-up connects as the administrator.
    """
    settings = {"ORDERS_HANDLER": "tests.journey.work_handlers:by_reference", "ORDERS_MAX_OUTBOX_AGE": "600"}
    with (
        places.database(servers, template) as url,
        places.vhost(servers) as vhost,
        hearing(url) as heard,
    ):
        way = heard.url(url)
        with System(
            way, vhost, tmp_path, Counts(apis=1), settings=settings, users_url=servers.management_url,
            launch=warm.launch,
        ) as system:  # fmt: skip
            assert heard.statements.pop(str(conninfo_to_dict(url)["user"])), "the set-up was not heard"
            await work(system, {"PATH": "/usr/bin"})

        assert set(heard.statements) == {"orders_api", "orders_worker", "orders_relay", "orders_operator"}
        del heard.statements["orders_relay"]
        with psycopg.connect(url, autocommit=True) as conn:
            statements = {role: texts | seldom(conn, role) for role, texts in heard.statements.items()}
            assert {role: refused(conn, role, texts) for role, texts in statements.items()} == dict.fromkeys(statements)
            assert "\n".join(map(str, unneeded(conn, statements))) == ""
            others = [Grant(*row) for row in conn.execute(GRANTED).fetchall()]
            assert [grant for grant in others if grant.role == "orders_relay"] == []
            reading = {grant for grant in others if grant.role == "orders_read"}
            assert {grant.privilege for grant in reading} == {"SELECT"}
            assert not {grant for grant in reading if grant.name == "client_keys" and grant.column in ("", "sha256")}


@pytest.mark.parametrize("role", ROLES)
def test_each_role_is_refused_the_rest(role: str, database_url: str) -> None:
    """
    With its own password no role makes, changes or drops a table, rewrites what was agreed or audited, reads files, or
    gives itself more rights; what the relay may do so, it may do with the outbox alone.
    """
    assert roles.open_database(database_url)
    allowed = set()
    with psycopg.connect(roles.url_for(role, database_url), autocommit=True) as conn:
        for statement in FORBIDDEN:
            try:
                with conn.transaction(force_rollback=True):
                    conn.execute(statement)
            except psycopg.errors.InsufficientPrivilege:
                continue
            allowed.add(statement)

    assert allowed == OWN.get(role, set())


def test_a_subscriber_needs_two_grants(database_url: str) -> None:
    """
    With the grants of docs/deployment.md a subscriber's role records events and tidies the inbox, and reads no order.
    """
    with psycopg.connect(database_url, autocommit=True) as conn, conn.transaction(force_rollback=True):
        conn.execute("CREATE ROLE subscriber_of_a_test")
        conn.execute("GRANT SELECT, INSERT ON inbox TO subscriber_of_a_test")
        conn.execute("GRANT EXECUTE ON FUNCTION inbox_keep(integer) TO subscriber_of_a_test")
        conn.execute("SET LOCAL ROLE subscriber_of_a_test")
        conn.execute(inbox.COLUMNS_ARE_THERE)
        conn.execute(inbox.KEEP, [7], binary=True)
        conn.execute(inbox.RECORD, [uuid7(), "mailer"])
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            conn.execute("SELECT FROM orders")


async def test_the_api_cannot_publish(database_url: str, topology: str, servers: Servers) -> None:
    """
    The api's credentials open nothing at RabbitMQ.
    """
    assert roles.open_vhost(topology, servers.management_url)
    with pytest.raises(aiormq.exceptions.AMQPConnectionError):
        await aiormq.connect(roles.url_for("orders_api", topology))
