"""Run tests in a copy of the tree, and say how they ended."""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from dev.sandbox.servers import Servers

LONGEST_SECONDS = 600.0  # of all checks together, on a busy machine; then they count as hanging
FAILED = 1  # pytest's code for: tests ran, and some failed


class CheckResult(msgspec.Struct, frozen=True):
    """How a check ended: it passed, it failed, or something else kept it from saying either."""

    passed: bool
    failed: bool
    seconds: float
    said: str  # the line that says what failed


def run(checks: Sequence[str], tree: Path, servers: Servers) -> CheckResult:
    """Run tests by their node ids; each makes a database and a vhost of its own on the servers."""
    environ = os.environ | {
        "PYTHONPATH": f"{tree / 'src'}:{tree}",
        "PYTHONDONTWRITEBYTECODE": "1",
        "SERVERS": "env",
        "DATABASE_URL": servers.database_url,
        "AMQP_URL": servers.amqp_url,
        "MANAGEMENT_URL": servers.management_url or "",
    }
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--no-header", "--tb=short"]
    command += checks
    began = time.monotonic()
    try:
        done = subprocess.run(
            command,
            cwd=tree,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=LONGEST_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return CheckResult(passed=False, failed=False, seconds=LONGEST_SECONDS, said="it hangs")
    seconds = round(time.monotonic() - began, 1)
    return CheckResult(
        passed=done.returncode == 0,
        failed=done.returncode == FAILED and not has_errors(done.stdout),
        seconds=seconds,
        said=what_failed(done.stdout),
    )


def has_errors(output: str) -> bool:
    """Say whether a fixture broke, by pytest's summary: then no test has said anything about the plant."""
    return any(line.startswith("ERROR ") for line in output.splitlines())


def what_failed(output: str) -> str:
    """Return the first line of pytest's that says what was wrong, or its last one."""
    lines = output.splitlines()
    errors = [line[1:].strip() for line in lines if line.startswith("E  ")]
    errors += [line for line in lines if line.startswith("FAILED ")]
    return next((line for line in errors if line), lines[-1] if lines else "")[:200]
