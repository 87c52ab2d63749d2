"""The baseline's own environment: `.venv-baseline`, with exactly the packages of its lock."""

import subprocess
import sys
from pathlib import Path

from dev.sandbox.process import ROOT

LOCK = ROOT / "requirements-baseline.lock"
FOLDER = ROOT / ".venv-baseline"


def ensure() -> Path:
    """Return its Python; make the environment if it is missing or older than its lock."""
    python = FOLDER / "bin" / "python"
    made = FOLDER / ".made"
    if not made.exists() or made.stat().st_mtime < LOCK.stat().st_mtime:
        print(f"installing the baseline's packages into {FOLDER.name}", file=sys.stderr, flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(FOLDER)], check=True)
        pip = [str(python), "-m", "pip", "--disable-pip-version-check", "--no-input", "install", "--quiet"]
        subprocess.run([*pip, "--require-hashes", "-r", str(LOCK)], check=True)
        made.touch()
    return python
