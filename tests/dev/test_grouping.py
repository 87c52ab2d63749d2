"""Tests that belong together run in one process, also beside others."""

import os
import re
import subprocess
import sys
from collections import defaultdict

from dev.sandbox.process import ROOT

FILES = ["tests/relay/test_waves.py", "tests/relay/test_topology.py"]


def test_a_group_stays_in_one_process() -> None:
    """
    Of two modules side by side, each runs all of its tests in one process.
    """
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-v",
        "-n2",
        "--dist=loadscope",
        "--no-loadscope-reorder",
        "-p",
        "no:cacheprovider",
    ]
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(
        [*command, "-m", "not servers", *FILES], cwd=ROOT, env=environ, capture_output=True, text=True, timeout=120
    )

    assert done.returncode == 0, done.stdout + done.stderr
    workers = defaultdict(set)
    for worker, file in re.findall(r"^\[(gw\d)\].* PASSED (\S+?)::", done.stdout, re.M):
        workers[file].add(worker)
    assert {file: len(found) for file, found in workers.items()} == dict.fromkeys(FILES, 1)
