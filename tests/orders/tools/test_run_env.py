"""The file that `make up` writes is read where it is, and its absence is no error."""

from pathlib import Path

from orders.tools.run_env import read_run_env


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
