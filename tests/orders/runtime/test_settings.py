"""A process is told everything at its start, or refuses with the name of what is wrong."""

import re
from pathlib import Path

import pytest

from orders.runtime.settings import ApiSettings, Settings, SettingsError, TopologySettings, WaitSettings, WorkerSettings

DATABASE = {"DATABASE_URL": "postgresql://orders@db1,db2/orders"}
BROKER = {"AMQP_URL": "amqp://orders@mq1/orders,amqps://orders@mq2/orders"}


def test_defaults_are_enough() -> None:
    """
    Where the servers are is all that has to be said.
    """
    api = ApiSettings.read(DATABASE)
    worker = WorkerSettings.read(DATABASE | BROKER)

    assert (api.database_url, api.orders_host, api.orders_port) == (DATABASE["DATABASE_URL"], "127.0.0.1", 8000)
    assert (worker.amqp_url, worker.worker_port, worker.worker_grace) == (BROKER["AMQP_URL"], 8002, 12)
    assert worker.orders_handler == "orders.handlers:wait_a_little"
    assert TopologySettings.read(BROKER).amqp_url == BROKER["AMQP_URL"]
    assert (WaitSettings.read({}).work_min_seconds, WaitSettings.read({}).work_max_seconds) == (0.01, 10)


def test_strings_become_numbers() -> None:
    """
    An environment holds strings; a setting has the type that its field says.
    """
    api = ApiSettings.read(DATABASE | {"ORDERS_PORT": "80", "ORDERS_PATIENCE": "0.5", "ORDERS_HOST": "0.0.0.0"})

    assert (api.orders_port, api.orders_patience, api.orders_host) == (80, 0.5, "0.0.0.0")


def test_others_variables_are_not_ours() -> None:
    """
    What else is in the environment is nobody's business.
    """
    assert ApiSettings.read(DATABASE | {"PATH": "/bin", "orders_port": "7"}).orders_port == 8000


@pytest.mark.parametrize(
    ("kind", "environ", "name"),
    [
        (ApiSettings, {}, "DATABASE_URL"),
        (WorkerSettings, DATABASE, "AMQP_URL"),
        (WorkerSettings, BROKER, "DATABASE_URL"),
        (TopologySettings, {}, "AMQP_URL"),
    ],
)
def test_missing(kind: type[Settings], environ: dict[str, str], name: str) -> None:
    """
    A missing setting is named, with what it is for.
    """
    with pytest.raises(SettingsError, match=rf"^{name} is not set: \S.*$"):
        kind.read(environ)


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        (ApiSettings, "DATABASE_URL", "postgresql+psycopg://db/orders"),
        (ApiSettings, "DATABASE_URL", ""),
        (ApiSettings, "ORDERS_HOST", ""),
        (ApiSettings, "ORDERS_PORT", "0"),
        (ApiSettings, "ORDERS_PORT", "65536"),
        (ApiSettings, "ORDERS_PORT", "eighty"),
        (ApiSettings, "ORDERS_PORT", ""),
        (ApiSettings, "ORDERS_BATCH_ROWS", "0"),
        (ApiSettings, "ORDERS_PATIENCE", "0"),
        (ApiSettings, "ORDERS_PATIENCE", "nan"),
        (ApiSettings, "ORDERS_GRACE", "-1"),
        (ApiSettings, "LOG_LEVEL", "loud"),
        (WorkerSettings, "AMQP_URL", "http://mq"),
        (WorkerSettings, "WORKER_CONCURRENCY", "0"),
        (WorkerSettings, "WORKER_CONCURRENCY", "1.5"),
        (WorkerSettings, "ORDERS_HANDLER", "a function"),
        (WorkerSettings, "WORK_TIMEOUT", "0"),
        (WorkerSettings, "WORK_MAX_ATTEMPTS", "0"),
    ],
)
def test_wrong(kind: type[Settings], name: str, value: str) -> None:
    """
    A wrong setting is named, in one line.
    """
    with pytest.raises(SettingsError) as error:
        kind.read(DATABASE | BROKER | {name: value})

    assert str(error.value).startswith(f"{name} is wrong: ")
    assert "\n" not in str(error.value)


def test_wait_that_ends_before_it_begins() -> None:
    """
    The bundled handler's longest wait is not shorter than its shortest.
    """
    assert WaitSettings.read({"WORK_MIN_SECONDS": "1", "WORK_MAX_SECONDS": "1"}).work_max_seconds == 1
    with pytest.raises(SettingsError, match="WORK_MAX_SECONDS"):
        WaitSettings.read({"WORK_MIN_SECONDS": "1", "WORK_MAX_SECONDS": "0.5"})


def test_settings_do_not_change() -> None:
    """
    What was read at the start holds until the end.
    """
    with pytest.raises(AttributeError):
        ApiSettings.read(DATABASE).orders_port = 9  # type: ignore[misc]


def test_exit_names_program_and_setting(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """
    A process that is told something wrong ends with one line and code 2.
    """
    monkeypatch.delenv("DATABASE_URL", raising=False)

    with pytest.raises(SystemExit) as end:
        ApiSettings.read_or_exit("orders.app")

    assert end.value.code == 2
    assert capsys.readouterr().err.startswith("orders.app: DATABASE_URL is not set: ")


def test_a_setting_from_a_file(tmp_path: Path) -> None:
    """
    NAME_FILE names a file with the value of NAME; a file that is not there, or a value beside it, is one clear line.
    """
    file = tmp_path / "database-url"
    file.write_text("postgresql://u:not-a-real-secret@h/d\n")

    assert ApiSettings.read({"DATABASE_URL_FILE": str(file)}).database_url == "postgresql://u:not-a-real-secret@h/d"
    assert ApiSettings.read(DATABASE | {"DATABASE_URL_FILE": ""}).database_url == DATABASE["DATABASE_URL"]
    file.with_name("bytes").write_bytes(b"\xff")
    for wrong, line in (
        ({"DATABASE_URL_FILE": str(tmp_path / "none")}, f"DATABASE_URL_FILE is wrong: {tmp_path}/none: No such file"),
        ({"DATABASE_URL_FILE": str(tmp_path / "bytes")}, "holds no UTF-8 text"),
        (DATABASE | {"DATABASE_URL_FILE": str(file)}, "DATABASE_URL and DATABASE_URL_FILE are both set"),
    ):
        with pytest.raises(SettingsError, match=re.escape(line)) as error:
            ApiSettings.read(wrong)
        assert "\n" not in str(error.value)
        assert "not-a-real-secret" not in str(error.value)
