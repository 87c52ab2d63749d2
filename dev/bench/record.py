"""What was measured, on what, and under which settings: one JSON file, written anew as each run ends."""

import os
import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, Self

import msgspec

from dev.sandbox import packages
from dev.sandbox.process import ROOT, write_atomically

FOLDER = ROOT / ".run" / "bench"
PACKAGES = ("aiormq", "psycopg", "psycopg-binary", "msgspec", "litestar", "uvicorn", "uvloop", "httptools")

Series = list[tuple[float, float]]
Figures = Mapping[str, float | Series]
Form = Literal["short", "full"]


class Run(msgspec.Struct, frozen=True):
    """One run of one side of a comparison."""

    comparison: str
    side: str
    round: int
    figures: dict[str, float | Series]
    load: float  # the machine's load average over the minute before it
    at: str


class Record(msgspec.Struct):
    """All the runs of one measurement."""

    name: str
    form: Form
    commit: str
    command: str
    machine: dict[str, Any]
    settings: dict[str, Any] = msgspec.field(default_factory=dict)
    ratios: dict[str, float] = msgspec.field(default_factory=dict)
    notes: list[str] = msgspec.field(default_factory=list)
    runs: list[Run] = msgspec.field(default_factory=list)

    @classmethod
    def open(cls, name: str, form: Form) -> Self:
        """Return the record that an interrupted full run of this very code left, or a new one."""
        command = f"make bench ONLY={name}" + (" FULL=1" if form == "full" else "")
        new = cls(name, form, commit(), command, machine())
        if form == "short":
            return new
        try:
            kept = msgspec.json.decode(new.path.read_bytes(), type=cls)
        except (FileNotFoundError, msgspec.MsgspecError):
            return new
        same = kept.form == form and kept.commit == new.commit and "+" not in new.commit
        return kept if same else new

    @property
    def path(self) -> Path:
        return FOLDER / f"{self.name}.json"

    def find(self, comparison: str, side: str, number: int) -> Run | None:
        """Return this run, if it was made."""
        for run in self.runs:
            if (run.comparison, run.side, run.round) == (comparison, side, number):
                return run
        return None

    def add(self, comparison: str, side: str, number: int, figures: Figures, load: float) -> Run:
        """Write down a run that has just ended."""
        at = datetime.now(UTC).isoformat(timespec="seconds")
        run = Run(comparison, side, number, dict(figures), round(load, 2), at)
        self.runs.append(run)
        self.save()
        return run

    def save(self) -> None:
        """Write the file."""
        FOLDER.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path, msgspec.json.format(msgspec.json.encode(self)).decode() + "\n")


def commit() -> str:
    """Return the commit that is measured, with a + behind it if files differ from it."""
    told = _told("git", "describe", "--always", "--dirty=+", "--exclude=*")
    return told or "unknown"


def machine() -> dict[str, Any]:
    """Return what a sceptic asks for first."""
    cpu = next((line.split(":", 1)[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), "")
    memory = next((int(line.split()[1]) // 1024 for line in _lines("/proc/meminfo") if line.startswith("MemTotal")), 0)
    versions = {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}}
    for name, flag in (("postgres", "--version"), ("nginx", "-v")):
        program = packages.find(name)
        versions[name] = _told(program, flag).rpartition("/" if name == "nginx" else ") ")[2] if program else ""
    versions["rabbitmq"] = _told("dpkg-query", "-W", "-f=${Version}", "rabbitmq-server")
    return {
        "cores": os.cpu_count(),
        "cpu": cpu,
        "memory_mib": memory,
        "system": f"{platform.system()} {platform.release()}",
        "load": [round(load, 2) for load in os.getloadavg()],
        "versions": versions,
    }


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def _told(*command: str) -> str:
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    except OSError:
        return ""
    return (done.stdout or done.stderr).strip() if done.returncode == 0 else ""


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""
