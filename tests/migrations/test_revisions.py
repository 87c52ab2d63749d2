"""The schema comes and goes by Alembic, however many replicas begin at once, and also without a connection."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from dev.sandbox import packages
from dev.sandbox.servers import Servers
from tests import places
from tests.migrations.conftest import Alembic
from tests.migrations.schema import look

REVISIONS = sorted((Path(__file__).resolve().parents[2] / "migrations" / "versions").glob("[0-9]*.py"))


def version(url: str) -> list[tuple[str]]:
    with psycopg.connect(url) as conn:
        return conn.execute("SELECT version_num FROM alembic_version").fetchall()


def test_up_down_and_up_again(bare_database: str, run_alembic: Callable[..., str]) -> None:
    """
    `downgrade base` takes away everything that `upgrade head` made, so that it can be made again.
    """
    before = look(bare_database)

    run_alembic(bare_database, "upgrade", "head")
    made = look(bare_database)
    run_alembic(bare_database, "downgrade", "base")
    left = look(bare_database)
    run_alembic(bare_database, "upgrade", "head")

    assert left == before
    assert made == look(bare_database)
    assert {"orders", "outbox", "idempotency_keys"} <= {row[0] for row in made["tables"]}


@pytest.mark.long
def test_step_by_step(bare_database: str, run_alembic: Callable[..., str]) -> None:
    """
    Each revision's way down leads to where its way up began.
    """
    for revision in REVISIONS:
        before = look(bare_database)
        run_alembic(bare_database, "upgrade", "+1")
        after = look(bare_database)
        run_alembic(bare_database, "downgrade", "-1")
        assert look(bare_database) == before, f"{revision.name} leaves something behind"
        run_alembic(bare_database, "upgrade", "+1")
        assert look(bare_database) == after


def test_three_at_once(bare_database: str, second_database: str, start_alembic: Alembic) -> None:
    """
    Three replicas that migrate at the same moment all succeed, and the schema is made once.
    """
    three = [start_alembic(bare_database, "upgrade", "head") for _ in range(3)]
    for each in three:
        _, err = each.communicate(timeout=60)
        assert each.returncode == 0, err
    one = start_alembic(second_database, "upgrade", "head")
    one.communicate(timeout=60)

    assert look(bare_database) == look(second_database)
    assert len(version(bare_database)) == 1


def test_again_is_nothing(bare_database: str, run_alembic: Callable[..., str]) -> None:
    """
    To migrate what is migrated changes nothing.
    """
    run_alembic(bare_database, "upgrade", "head")
    before = look(bare_database)

    run_alembic(bare_database, "upgrade", "head")

    assert look(bare_database) == before


def test_offline(bare_database: str, second_database: str, run_alembic: Callable[..., str]) -> None:
    """
    `--sql` prints statements that psql takes as they are, and that make the same schema.
    """
    run_alembic(bare_database, "upgrade", "head")
    script = run_alembic("postgresql://nobody@nowhere.invalid/none", "upgrade", "head", "--sql")

    psql(second_database, script)

    assert look(second_database) == look(bare_database)
    assert version(second_database) == version(bare_database)


def test_offline_down(bare_database: str, second_database: str, run_alembic: Callable[..., str]) -> None:
    """
    The way back works by psql as well.
    """
    run_alembic(bare_database, "upgrade", "head")
    newest = version(bare_database)[0][0]

    psql(bare_database, run_alembic(bare_database, "downgrade", f"{newest}:base", "--sql"))

    assert look(bare_database) == look(second_database)


def test_one_line_without_a_database(start_alembic: Alembic) -> None:
    """
    Without DATABASE_URL, or with a wrong one, the last line says so.
    """
    for url in (None, "postgresql://127.0.0.1:9/orders"):
        process = start_alembic(url, "upgrade", "head")
        _, err = process.communicate(timeout=60)

        assert process.returncode == 1
        assert len(err.splitlines()) == 1, err
        assert "DATABASE_URL" in err


def test_url_from_a_file(bare_database: str, start_alembic: Alembic, tmp_path: Path) -> None:
    """
    DATABASE_URL_FILE names a file that holds the URL; one that is not there is one clear line.
    """
    (tmp_path / "url").write_text(bare_database + "\n")
    for name, code, line in (("url", 0, ""), ("none", 1, f"DATABASE_URL_FILE is wrong: {tmp_path}/none")):
        process = start_alembic(None, "current", DATABASE_URL_FILE=str(tmp_path / name))
        _, err = process.communicate(timeout=60)

        assert (process.returncode, line in err) == (code, True), err


def psql(url: str, script: str) -> None:
    """Run a script as an administrator would; the first error ends it."""
    packages.ensure(["psql"])
    program = packages.find("psql")
    assert program is not None
    done = subprocess.run(
        [program, "--no-psqlrc", "--quiet", "--set", "ON_ERROR_STOP=1", "--dbname", url],
        input=script,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_schema_of_the_url(bare_database: str, run_alembic: Callable[..., str]) -> None:
    """
    A schema named by `options` in DATABASE_URL gets every table, and `public` none.
    """
    url = f"{bare_database}?options=-c%20search_path%3Dshop"
    with psycopg.connect(bare_database) as conn:
        conn.execute("CREATE SCHEMA shop")
    run_alembic(url, "upgrade", "head")

    with psycopg.connect(bare_database) as conn:
        schemas = conn.execute(
            "SELECT DISTINCT relnamespace::regnamespace::text FROM pg_class WHERE relkind IN ('r', 'p') "
            "AND relnamespace::regnamespace::text NOT IN ('pg_catalog', 'information_schema')"
        ).fetchall()
    assert schemas == [("shop",)]
    run_alembic(url, "downgrade", "base")


def test_short_timeouts_of_the_database(bare_database: str, run_alembic: Callable[..., str]) -> None:
    """
    Timeouts that a database sets for its sessions end no migration.
    """
    with psycopg.connect(bare_database, autocommit=True) as conn:
        for name in ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout"):
            database = sql.Identifier(conn.info.dbname)
            conn.execute(sql.SQL("ALTER DATABASE {} SET {} = '1ms'").format(database, sql.SQL(name)))
    run_alembic(bare_database, "upgrade", "head")


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
def test_encoding_that_cannot_hold_every_text(servers: Servers, encoding: str, start_alembic: Alembic) -> None:
    """
    A database whose encoding is not UTF8 is refused in one line, and stays empty.
    """
    rest = sql.SQL(" ENCODING {} LOCALE 'C' TEMPLATE template0").format(sql.Literal(encoding))
    with places.database(servers, rest=rest) as url:
        process = start_alembic(url, "upgrade", "head")
        _, err = process.communicate(timeout=60)

        assert process.returncode == 1
        assert err == (
            f"alembic: the encoding of this database is {encoding}, and orders need UTF8: "
            "make it with `CREATE DATABASE ... ENCODING 'UTF8' TEMPLATE template0`\n"
        )
        with psycopg.connect(url) as conn:
            assert conn.execute("SELECT count(*) FROM pg_class WHERE relname = 'orders'").fetchone() == (0,)
