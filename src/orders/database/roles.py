"""The roles of the processes: `migrations/versions/0013_roles.py` says what each may do, and here they may log in."""

from collections.abc import Mapping
from typing import LiteralString

import psycopg
from psycopg import sql

ROLES = ("orders_api", "orders_worker", "orders_relay", "orders_operator", "orders_read")

GRANT: LiteralString = "SELECT grant_roles()"

LET_LOG_IN: LiteralString = "ALTER ROLE {} LOGIN PASSWORD {}"

# One fifth of the connections stays free for people and other programs. A limit that was set by hand stays.
LIMIT: LiteralString = """
DO $limit$
DECLARE
    given record;
BEGIN
    FOR given IN
        SELECT rolname, (share * current_setting('max_connections')::integer)::integer AS connections
        FROM pg_roles JOIN (VALUES ('orders_api', 0.3), ('orders_worker', 0.4), ('orders_relay', 0.1))
            AS shares (rolname, share) USING (rolname)
        WHERE rolconnlimit = -1
    LOOP
        EXECUTE format('ALTER ROLE %I CONNECTION LIMIT %s', given.rolname, given.connections);
    END LOOP;
END
$limit$
"""

# To see since when a transaction of another role holds the low-water mark, and which commits wait for a standby.
SEE_OTHERS: LiteralString = "GRANT pg_read_all_stats TO orders_relay, orders_operator"


def statements(passwords: Mapping[str, str]) -> list[sql.SQL | sql.Composed]:
    """Return the statements that let these roles log in with these passwords, for an administrator to run."""
    return [
        sql.SQL(GRANT),
        *(
            sql.SQL(LET_LOG_IN).format(sql.Identifier(role), sql.Literal(password))
            for role, password in passwords.items()
        ),
        sql.SQL(LIMIT),
        sql.SQL(SEE_OTHERS),
    ]


def let_log_in(url: str, passwords: Mapping[str, str]) -> list[str]:
    """Run the statements as the administrator of this libpq URL, and return PostgreSQL's warnings.

    Raises psycopg.Error, and then nothing has changed. The server gets verifiers instead of the passwords, so that its
    log cannot show them.
    """
    warnings: list[str] = []

    def take(notice: psycopg.errors.Diagnostic) -> None:
        if notice.severity_nonlocalized == "WARNING":
            warnings.append(str(notice.message_primary))

    with psycopg.connect(url, connect_timeout=10) as conn:
        conn.add_notice_handler(take)
        verifiers = {
            role: conn.pgconn.encrypt_password(password.encode(), role.encode(), b"scram-sha-256").decode()
            for role, password in passwords.items()
        }
        for statement in statements(verifiers):
            conn.execute(statement)
    return warnings
