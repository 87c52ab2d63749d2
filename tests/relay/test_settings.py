"""Settings: read once, or one line that says what is wrong."""

from pathlib import Path

import pytest

from relay.settings import BadSetting, Settings

NEEDED = {"DATABASE_URL": "postgresql://db/app", "AMQP_URL": "amqp://one, amqp://two/v"}


def test_defaults() -> None:
    """
    Two settings are needed; lists are split at commas.
    """
    settings = Settings.read({**NEEDED, "RELAY_REQUIRED_QUEUES": "a, b", "RELAY_PORT": "9000", "RELAY_HOST": ""})

    assert settings.amqp_urls == ("amqp://one", "amqp://two/v")
    assert settings.queue_names == ("a", "b")
    assert settings.exchange_names == ()
    assert (settings.port, settings.host) == (9000, "127.0.0.1")
    assert settings.retention_seconds == 7 * 86400


@pytest.mark.parametrize(
    ("written", "seconds"), [("90", 90), ("90s", 90), ("1.5h", 5400), ("30m", 1800), ("2d", 172800)]
)
def test_retention(written: str, seconds: float) -> None:
    """
    Retention is a number with a unit.
    """
    assert seconds == Settings.read({**NEEDED, "RELAY_RETENTION": written}).retention_seconds


@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        ({"RELAY_BATCH_ROWS": "many"}, "RELAY_BATCH_ROWS: expected `int`, got `str`"),
        ({"RELAY_BATCH_ROWS": "0"}, "RELAY_BATCH_ROWS: expected `int` >= 1"),
        ({"RELAY_CONFIRM_SECONDS": "600"}, "RELAY_CONFIRM_SECONDS: at most 60"),
        ({"RELAY_RETENTION": "soon"}, "RELAY_RETENTION: expected something like 7d"),
        ({"RELAY_POLL_SECONDS": "2.5"}, "RELAY_POLL_SECONDS: at most 2, since PostgreSQL ends"),
        ({"RELAY_MANAGEMENT_URL": "host:15672"}, "RELAY_MANAGEMENT_URL: expected http://"),
        ({"AMQP_URL": "http://x"}, "AMQP_URL: expected amqp://"),
        ({"AMQP_URL": ""}, "AMQP_URL: it is not set"),
        ({"RELAY_REQUIRED_ROUTES": "placed"}, "RELAY_REQUIRED_ROUTES: expected exchange/routing.key"),
        ({"RELAY_REQUIRED_ROUTES": "orders/placed"}, "RELAY_REQUIRED_ROUTES: needs RELAY_REQUIRED_QUEUES"),
        ({"DATABASE_URL": "mysql://x"}, "DATABASE_URL: expected postgresql://"),
    ],
)
def test_wrong_settings(wrong: dict[str, str], line: str) -> None:
    """
    A wrong setting is named in one line.
    """
    with pytest.raises(BadSetting) as error:
        Settings.read({**NEEDED, **wrong})

    assert str(error.value).startswith(line)
    assert "\n" not in str(error.value)


def test_a_setting_from_a_file(tmp_path: Path) -> None:
    """
    NAME_FILE names a file with the value of NAME; a file that is not there is one clear line.
    """
    (tmp_path / "url").write_text("http://u:p@h:15672\n")

    assert Settings.read({**NEEDED, "RELAY_MANAGEMENT_URL_FILE": str(tmp_path / "url")}).management_url == (
        "http://u:p@h:15672"
    )
    with pytest.raises(BadSetting, match="AMQP_URL_FILE is wrong: /nowhere: No such file"):
        Settings.read({"DATABASE_URL": NEEDED["DATABASE_URL"], "AMQP_URL_FILE": "/nowhere"})
