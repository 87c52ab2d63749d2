"""The document is the truth: thousands of requests made from it, to a running service, and every answer checked."""

import os
import random
import re
import subprocess
import sys
from pathlib import Path

from dev.sandbox.process import ROOT
from dev.sandbox.system import System
from orders.api.openapi import document
from tests.conftest import StartSystem
from tests.orders.conftest import Api

# Of each operation and phase, in one round. `make fuzz` has larger rounds, and as many as make up 20,000 cases.
EXAMPLES = os.environ.get("FUZZ_EXAMPLES", "25")
CASES = int(os.environ.get("FUZZ_CASES", "1"))
SEED = int(os.environ.get("FUZZ_SEED", "0")) or random.randrange(1, 2**31)


def test_schemathesis(start_system: StartSystem, tmp_path: Path) -> None:
    """
    No request that the document leads to gets a 5xx, an undocumented answer, or one that is not as it says.
    """
    # Orders are worked at once, so that their streams end; what waits behind a busy machine is no fault here.
    settings = {"WORK_MIN_SECONDS": "0", "WORK_MAX_SECONDS": "0.05", "ORDERS_PATIENCE": "20"}
    system = start_system(apis=1, settings=settings, with_nginx=False)
    cases, rounds = 0, 0
    while cases < CASES:
        made = play(system, tmp_path, SEED + rounds)
        cases, rounds = cases + made, rounds + 1
        print(f"schemathesis: {cases} cases in {rounds} rounds, none of them failed", flush=True)


def play(system: System, folder: Path, seed: int) -> int:
    """Send one round of requests, fail if one is answered wrongly, and return how many they were."""
    done = subprocess.run(
        [
            str(Path(sys.executable).with_name("st")),
            f"--config-file={ROOT / 'tests' / 'orders' / 'schemathesis.toml'}",
            "run", f"{system.base_url}/openapi.json", "--checks=all", f"--max-examples={EXAMPLES}", f"--seed={seed}",
            "--request-timeout=20", "--continue-on-failure", "--no-color", "--warnings=off",
        ],
        cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert done.returncode == 0, f"FUZZ_SEED={seed}\n{done.stdout[-8000:]}"
    [count] = re.findall(r"^ *([0-9]+) generated", done.stdout, re.MULTILINE)
    return int(count)


async def test_every_route_is_documented(api: Api) -> None:
    """
    What the document lists is served, as it is for those who have no tools.
    """
    assert document() == (await api.client.get("/openapi.json")).json()
    page = await api.client.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert "http" not in page.text.replace("http-equiv", "")
