"""`make demo`, as a person or a script runs it."""

import gzip
import itertools
import json
import os
import pty
import re
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from dev.sandbox.choice import Choice
from dev.sandbox.process import ROOT
from dev.sandbox.servers import Servers
from tests.eventually import eventually

BUNDLED = ROOT / "examples" / "online-retail-2010-12.csv.gz"
DEMO_SECONDS = 240.0  # on a machine that is busy with other things; alone it takes a tenth


class Demo:
    """One run of the demo, in folders of its own, and every process of it recognisable."""

    def __init__(self, folder: Path, choice: Choice, stdin: int, *file: Path) -> None:
        self.mark = f"demo-{secrets.token_hex(8)}"
        self.folder = folder / self.mark
        self.folder.mkdir(mode=0o711)
        self.output = folder / "output"
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "dev.sandbox.demo", *map(str, file)],
                cwd=ROOT,
                # A server's own environment is none of ours: it is known by its folder.
                env=os.environ
                | {
                    "SERVERS": choice.kind,
                    "SANDBOX_RUN": str(self.folder),
                    "TMPDIR": str(self.folder),
                    "MARK": self.mark,
                },
                stdin=stdin,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def text(self) -> str:
        return self.output.read_text()

    def summary(self) -> dict[str, object]:
        summary: dict[str, object] = json.loads((self.folder / "demo.json").read_bytes())
        return summary

    def living(self) -> list[str]:
        """Every process that was started by this demo, by whomever in it."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with suppress(OSError):
                    command, environ = (entry / "cmdline").read_bytes(), (entry / "environ").read_bytes()
                    if self.mark.encode() in command + environ:
                        found.append(command.replace(b"\0", b" ").decode())
        return found


@pytest.fixture
def terminal() -> Iterator[int]:
    """The descriptor of a terminal at which nobody types."""
    ours, theirs = pty.openpty()
    try:
        yield theirs
    finally:
        os.close(theirs)
        os.close(ours)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that the servers' users get through, which those of pytest are not."""
    with tempfile.TemporaryDirectory(prefix="demo-") as name:
        Path(name).chmod(0o711)
        yield Path(name)


@pytest.mark.long
async def test_without_a_terminal(open_folder: Path, servers: Servers) -> None:
    """
    It takes every order to its end, says so, and leaves nothing running.
    """
    demo = Demo(open_folder, servers.choice, subprocess.DEVNULL)
    code = demo.process.wait(DEMO_SECONDS)

    assert code == 0, demo.text()
    summary = demo.summary()
    counts = {name: summary[name] for name in ("placed", "published", "done", "refused", "not_done", "complete")}
    assert counts == {
        "placed": 1449, "published": 1449, "done": 1449, "refused": 443, "not_done": [], "complete": True
    }  # fmt: skip
    refused_by = summary["refused_by"]
    assert isinstance(refused_by, dict)
    assert {kind: each["count"] for kind, each in refused_by.items()} == {
        "cancellation": 299,
        "quantity": 69,
        "price": 75,
    }
    legs = summary["legs"]
    assert isinstance(legs, dict)
    for leg in ("accept", "commit_to_confirm", "placed_to_done"):
        assert legs[leg]["orders"] == 1449
        assert 0 < legs[leg]["p50_ms"] <= legs[leg]["p99_ms"]
    assert "1,449" in demo.text()
    assert demo.living() == []


@pytest.mark.long
async def test_at_a_terminal(open_folder: Path, servers: Servers, terminal: int) -> None:
    """
    It serves on until Ctrl-C, and then ends everything.
    """
    # The first invoices alone: the test above takes all of them to their end.
    with gzip.open(BUNDLED, "rt") as bundled:
        file = open_folder / "invoices.csv"
        file.write_text("".join(itertools.islice(bundled, 200)))
    demo = Demo(open_folder, servers.choice, terminal, file)
    try:
        await eventually(lambda: "serves on at" in demo.text() or demo.process.poll() is not None, DEMO_SECONDS)
        served = re.search(r"serves on at (http://\S+) until", demo.text())
        assert served, demo.text()
        async with httpx.AsyncClient(base_url=served[1], trust_env=False) as client:
            placed = await client.post("/order/place")
            assert placed.status_code == httpx.codes.OK
        assert demo.living() != []
    finally:
        demo.process.send_signal(signal.SIGINT)
        code = demo.process.wait(60)

    assert code == 0, demo.text()
    assert demo.living() == []


@pytest.mark.long
async def test_ended_early(open_folder: Path, servers: Servers) -> None:
    """
    SIGTERM in the middle ends everything as well, and the code says that it was not finished.
    """
    demo = Demo(open_folder, servers.choice, subprocess.DEVNULL)
    await eventually(lambda: " placed, " in demo.text() or demo.process.poll() is not None, DEMO_SECONDS)
    demo.process.terminate()
    code = demo.process.wait(60)

    assert code == 130, demo.text()
    assert not (demo.folder / "demo.json").exists()
    assert demo.living() == []
