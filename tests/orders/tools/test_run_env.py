"""The file that `make up` writes is read where it is, and its absence is no error."""

import os
from pathlib import Path

import pytest

from orders.runtime.settings import ClientSettings, ReconcileSettings
from orders.tools.client import base_url_of
from orders.tools.run_env import environment_for, read_run_env


def test_lines_become_names_and_values(tmp_path: Path) -> None:
    """
    A value may hold the sign that separates it from its name; a line without one says nothing.
    """
    (tmp_path / "env").write_text("BASE_URL=http://127.0.0.1:8080\nDATABASE_URL=postgresql://h/d?a=b\n\nnothing\n")

    assert read_run_env(tmp_path / "env") == {
        "BASE_URL": "http://127.0.0.1:8080",
        "DATABASE_URL": "postgresql://h/d?a=b",
    }
    assert read_run_env(tmp_path / "none") == {}


def test_the_environment_comes_first(tmp_path: Path) -> None:
    """
    One setting in the environment is enough: a command never mixes the addresses of two systems.
    """
    (tmp_path / "env").write_text("AMQP_URL=amqp://here\nDATABASE_URL=postgresql://here\n")
    elsewhere = {"DATABASE_URL": "postgresql://elsewhere"}

    assert environment_for(ReconcileSettings, elsewhere, tmp_path / "env") == elsewhere
    in_a_file = {"DATABASE_URL_FILE": "/run/secrets/database-url"}
    assert environment_for(ReconcileSettings, in_a_file, tmp_path / "env") == in_a_file
    assert environment_for(ReconcileSettings, {"HOME": "/"}, tmp_path / "env") == {
        "AMQP_URL": "amqp://here",
        "DATABASE_URL": "postgresql://here",
    }


def test_the_file_of_another_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A file that somebody else has put there is not read.
    """
    (tmp_path / "env").write_text("BASE_URL=http://elsewhere.example\n")
    assert read_run_env(tmp_path / "env") == {"BASE_URL": "http://elsewhere.example"}

    owner = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    assert read_run_env(tmp_path / "env") == {}


def test_an_api_key_goes_to_no_address_of_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """
    An API key is sent where the user says, or to this machine; a .run/env that names another one ends the command.
    """
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".run").mkdir()
    env = tmp_path / ".run" / "env"
    with_key, without = ClientSettings(orders_api_key="orders_0123"), ClientSettings()

    env.write_text("BASE_URL=http://elsewhere.example\n")
    assert base_url_of(None, without) == "http://elsewhere.example"
    assert base_url_of("http://given.example", with_key) == "http://given.example"
    with pytest.raises(SystemExit):
        base_url_of(None, with_key)
    assert "the API key is not sent to http://elsewhere.example" in capsys.readouterr().err
    env.write_text("BASE_URL=http://127.0.0.1:8080\n")
    assert base_url_of(None, with_key) == "http://127.0.0.1:8080"
