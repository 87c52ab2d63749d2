"""The document is the truth: thousands of requests made from it, to a running service, and every answer checked."""

import os
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema_rs
import msgspec
import pytest

from dev.sandbox.process import ROOT
from dev.sandbox.system import System
from orders.api import batch, fast_path, health, openapi, routes
from orders.api.listing import Query
from orders.api.live import HEARTBEAT_SECONDS, TICK_SECONDS
from orders.api.metrics import metrics
from orders.api.openapi import document
from orders.api.preconditions import LONGEST_WAIT_SECONDS
from orders.database.orders_table import StatusNow
from orders.model.order import NewOrder
from tests.conftest import StartSystem
from tests.orders.api import ndjson_hooks
from tests.orders.conftest import Api

# Of each operation and phase, in one round. `make fuzz` has larger rounds, and as many as make up 20,000 cases.
EXAMPLES = os.environ.get("FUZZ_EXAMPLES", "25")
CASES = int(os.environ.get("FUZZ_CASES", "1"))
SEED = int(os.environ.get("FUZZ_SEED", "0")) or random.randrange(1, 2**31)


@pytest.mark.long
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
        cwd=folder, text=True, env=os.environ | {"SCHEMATHESIS_HOOKS": ndjson_hooks.__name__, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert done.returncode == 0, f"FUZZ_SEED={seed}\n{done.stdout[-8000:]}"
    [count] = re.findall(r"^ *([0-9]+) generated", done.stdout, re.MULTILINE)
    return int(count)


# For operators and tools: nginx passes none of the first three on.
UNDOCUMENTED = {"/metrics", "/health/live", "/health/ready", "/openapi.json", "/docs"}


async def test_every_route_is_documented(api: Api) -> None:
    """
    What the document lists is served, as it is for those who have no tools; nothing else is.
    """
    assert document() == (await api.client.get("/openapi.json")).json()
    page = await api.client.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert "http" not in page.text.replace("http-equiv", "")
    policy = page.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy
    served = {
        (re.sub(r":[a-z]+}", "}", path), method.lower())
        for handler in [*routes.HANDLERS, *health.HANDLERS, *openapi.HANDLERS, metrics]
        for path in handler.paths
        for method in handler.http_methods - {"OPTIONS"}
    }
    documented = {(path, method) for path, methods in document()["paths"].items() for method in methods}
    assert documented == {(path, method) for path, method in served if path not in UNDOCUMENTED}


def test_the_document_agrees_with_the_structs() -> None:
    """
    The hand-written part has the fields, limits and times of the code: of parameters, examples and headers.
    """
    paths = document()["paths"]
    listing = {each["name"]: each for each in paths["/orders"]["get"]["parameters"]}
    query = msgspec.json.schema(Query)["$defs"]["Query"]
    assert {name: each["schema"] for name, each in listing.items()} == query["properties"]
    assert not query.get("required")
    assert not any("required" in each for each in listing.values())

    [key] = paths["/orders"]["post"]["parameters"]
    assert key["schema"]["pattern"].strip("^$").encode() == fast_path.IDEMPOTENCY_KEY
    assert f"at most {LONGEST_WAIT_SECONDS}" in paths["/orders/{order_id}"]["get"]["parameters"][2]["description"]
    stream = paths["/orders/{order_id}/events"]["get"]["description"]
    assert f"within {TICK_SECONDS * 1000:.0f} ms" in stream
    assert f"every {HEARTBEAT_SECONDS:.0f} s" in stream
    assert f"{fast_path.MAX_BODY_BYTES >> 20} MiB" in paths["/orders"]["post"]["responses"]["413"]["description"]

    many = paths["/orders/batch"]["post"]
    assert f"at most {batch.MAX_LINES:,} lines" in many["description"]
    [[media_type, lines]] = many["requestBody"]["content"].items()
    assert (media_type, lines["schema"]["maxItems"]) == (batch.MEDIA_TYPE, batch.MAX_LINES)
    msgspec.convert(lines["example"], list[batch.BatchLine])

    examples = list(media_types(paths))
    assert len(examples) == 5
    for media_type in examples:
        schema = {**media_type["schema"], "components": document()["components"]}
        jsonschema_rs.validator_for(schema, validate_formats=True).validate(media_type["example"])
    msgspec.convert(paths["/orders"]["post"]["requestBody"]["content"]["application/json"]["example"], NewOrder)
    [status] = paths["/orders/{order_id}/events"]["get"]["responses"]["200"]["content"]["text/event-stream"]["schema"][
        "properties"
    ]["data"]["examples"]
    msgspec.json.decode(status, type=StatusNow)


def media_types(node: Any) -> Iterator[dict[str, Any]]:
    """Every content with an example."""
    match node:
        case {"schema": {"$ref": _}, "example": _}:
            yield node
        case dict():
            for child in node.values():
                yield from media_types(child)
