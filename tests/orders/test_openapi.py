"""The document is the truth: thousands of requests made from it, to a running service, and every answer checked."""

import os
import subprocess
import sys
from pathlib import Path

from orders.openapi import document
from sandbox.process import ROOT
from tests.conftest import StartSystem
from tests.orders.conftest import Api

# `make fuzz` sets it to 5,000: more than 20,000 cases, some 20 minutes.
EXAMPLES = os.environ.get("FUZZ_EXAMPLES", "25")


def test_schemathesis(start_system: StartSystem, tmp_path: Path) -> None:
    """
    No request that the document leads to gets a 5xx, an undocumented answer, or one that is not as it says.
    """
    # Orders are worked at once, so that their streams end; what waits behind a busy machine is no fault here.
    settings = {"WORK_MIN_SECONDS": "0", "WORK_MAX_SECONDS": "0.05", "ORDERS_PATIENCE": "20"}
    system = start_system(apis=1, settings=settings, with_nginx=False)
    done = subprocess.run(
        [
            str(Path(sys.executable).with_name("st")),
            f"--config-file={ROOT / 'tests' / 'orders' / 'schemathesis.toml'}",
            "run", f"{system.base_url}/openapi.json", "--checks=all", f"--max-examples={EXAMPLES}",
            "--request-timeout=20", "--continue-on-failure", "--no-color", "--warnings=off",
        ],
        cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    print(done.stdout)

    assert done.returncode == 0, done.stdout[-6000:]


async def test_every_route_is_documented(api: Api) -> None:
    """
    What the document lists is served, as it is for those who have no tools.
    """
    assert document() == (await api.client.get("/openapi.json")).json()
    page = await api.client.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert "http" not in page.text.replace("http-equiv", "")
