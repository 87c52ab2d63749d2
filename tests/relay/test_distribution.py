"""What `pip install` gives to others: the relay by its own name, and `orders`, which says that an extra is missing."""

import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from email import message_from_string
from pathlib import Path
from typing import Any

import pytest

from tests.relay.service import ROOT

SECONDS = 120.0  # of a busy machine; alone each step takes two or three


def run(*command: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=SECONDS, check=False)


def pip(*words: str | Path) -> None:
    """Run pip without an index: what it needs is installed here."""
    done = run(sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", *words)
    assert done.returncode == 0, done.stderr


def install(source: Path, folder: Path) -> tuple[Path, Path]:
    """Build a wheel, install it and nothing else into a new environment; return the wheel and the environment."""
    environment = folder / "environment"
    pip("wheel", "--no-index", "--no-deps", "--no-build-isolation", "-w", folder, source)
    [wheel] = folder.glob("*.whl")
    assert run(sys.executable, "-m", "venv", "--without-pip", environment).returncode == 0
    pip("--python", environment / "bin" / "python", "install", "--no-index", "--no-deps", wheel)
    return wheel, environment


def lend_packages(environment: Path) -> None:
    """Let the environment see the packages of this one, but not this project, which is installed as editable."""
    [site_packages] = environment.glob("lib/python*/site-packages")
    (site_packages / "lent.pth").write_text(f"{sysconfig.get_path('purelib')}\n")


def project(path: Path) -> dict[str, Any]:
    settings: dict[str, Any] = tomllib.loads(path.read_text())["project"]
    return settings


@pytest.mark.long
def test_the_relay_installs_alone(tmp_path: Path) -> None:
    """
    The wheel of relay/ has the package `relay` and no other, needs four packages, and its command prints the schema.
    """
    wheel, environment = install(ROOT / "relay", tmp_path)
    lend_packages(environment)
    printed = run(environment / "bin" / "relay", "schema", cwd=tmp_path)
    shop = run(environment / "bin" / "python", "-c", "import orders", cwd=tmp_path)

    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        [metadata] = [message_from_string(archive.read(name).decode()) for name in names if name.endswith("/METADATA")]
    assert metadata["Name"] == "orders-relay"
    needed = sorted(requirement.split("<")[0].split(">")[0] for requirement in metadata.get_all("Requires-Dist", []))
    assert needed == ["aiormq", "msgspec", "prometheus-client", "psycopg[binary]"]
    assert {name for name in names if name.startswith("relay/")} == {
        f"relay/{path.name}"
        for pattern in ("*.py", "schema.sql", "py.typed")
        for path in (ROOT / "relay").glob(pattern)
    }
    assert {name.split("/")[0] for name in names} == {"relay", f"orders_relay-{metadata['Version']}.dist-info"}
    assert (printed.returncode, printed.stderr) == (0, "")
    assert "CREATE TABLE outbox (" in printed.stdout
    assert "ModuleNotFoundError: No module named 'orders'" in shop.stderr


def test_both_distributions_say_the_same() -> None:
    """
    The relay's own distribution has the version, the Python and the packages of the distribution `orders`.
    """
    alone, both = project(ROOT / "relay" / "pyproject.toml"), project(ROOT / "pyproject.toml")

    for field in ("version", "requires-python", "dependencies", "license"):
        assert alone[field] == both[field]
    assert alone["scripts"] == {"relay": both["scripts"]["relay"]}


@pytest.mark.long
def test_orders_without_its_extra(tmp_path: Path) -> None:
    """
    The command `orders` without the packages of the extra `service` says in one line what to install.
    """
    wheel, environment = install(ROOT, tmp_path)
    answer = run(environment / "bin" / "orders", "topology", cwd=tmp_path)

    assert (answer.returncode, answer.stdout) == (1, "")
    assert answer.stderr.startswith("orders: the package 'click' is missing: install the service with `pip install")
    assert answer.stderr.count("\n") == 1
    with zipfile.ZipFile(wheel) as archive:
        assert {"relay/schema.sql", "relay/py.typed"} <= set(archive.namelist())
        assert {"relay/pyproject.toml", "relay/LICENSE"}.isdisjoint(archive.namelist())
