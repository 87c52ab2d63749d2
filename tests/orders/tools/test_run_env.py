"""The file that `make up` writes is read where it is, and its absence is no error."""

from pathlib import Path

from orders.runtime.settings import ReconcileSettings
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
    assert environment_for(ReconcileSettings, {"HOME": "/"}, tmp_path / "env") == {
        "AMQP_URL": "amqp://here",
        "DATABASE_URL": "postgresql://here",
    }
