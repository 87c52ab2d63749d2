"""The real processes in front of given servers: counted, scaled, and told their settings."""

import httpx
import pytest

from dev.sandbox.process import StartError, wait_until
from dev.sandbox.system import Counts, System
from tests.conftest import StartSystem


def test_counts() -> None:
    """
    Three apis, a relay and a worker, unless the environment says otherwise.
    """
    assert Counts.read({}) == Counts(apis=3, relays=1, workers=1)
    assert Counts.read({"APIS": "5", "RELAYS": "0", "WORKERS": ""}) == Counts(apis=5, relays=0, workers=1)


@pytest.mark.parametrize("value", ["some", "-1", "1.5"])
def test_no_count(value: str) -> None:
    """
    What is no count is refused by the name of the variables.
    """
    with pytest.raises(StartError, match="APIS, RELAYS and WORKERS are counts"):
        Counts.read({"RELAYS": value})


def test_scaled(start_system: StartSystem) -> None:
    """
    A system is scaled while it serves: to no api at all, which nginx answers for, and back.
    """
    system: System = start_system(apis=1, relays=0, workers=0)
    assert httpx.get(system.base_url + "/health").status_code == 200
    front = system.process("nginx").pid
    system.scale(Counts(apis=0, relays=0, workers=0))
    system.wait_ready()
    wait_for_status(system, 502)
    system.scale(Counts(apis=2, relays=0, workers=0))
    system.wait_ready()
    wait_for_status(system, 200)

    assert [process.name for process in system.processes] == ["nginx", "api-1", "api-2"]
    assert system.process("nginx").pid == front


def test_changed_setting(start_system: StartSystem) -> None:
    """
    A setting that changes restarts the processes that read it, and no others.
    """
    system: System = start_system(apis=1, relays=1, workers=0)
    before = {process.name: process.pid for process in system.processes}
    system.change({"RELAY_BATCH_ROWS": "50"})
    system.scale(Counts(apis=1, relays=1, workers=0))
    system.wait_ready()
    after = {process.name: process.pid for process in system.processes}

    assert after["relay-1"] != before["relay-1"]
    assert after["api-1"] == before["api-1"]
    assert after["nginx"] == before["nginx"]


def test_nothing_left(start_system: StartSystem) -> None:
    """
    Closing it finishes every process, none of them by SIGKILL.
    """
    system: System = start_system(apis=1)
    processes = system.processes
    system.close()

    assert all(process.pid is None for process in processes)
    assert {process.name: process.last_exit for process in processes} == dict.fromkeys(
        ("api-1", "relay-1", "worker-1", "nginx"), 0
    )


def wait_for_status(system: System, status: int) -> None:
    """nginx takes a reload when its new workers are there."""
    wait_until(
        lambda: httpx.get(system.base_url + "/health").status_code == status, 5, lambda: f"nginx never says {status}"
    )
