"""One line says which servers were taken, and why."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from dev.sandbox import docker_engine
from dev.sandbox.choice import ChoiceError, choose

URLS = {"DATABASE_URL": "postgresql://u:p@h/d", "AMQP_URL": "amqp://u:p@h/v"}


def test_asked_for() -> None:
    """
    SERVERS decides, whatever else is set.
    """
    assert str(choose({"SERVERS": "local"} | URLS)) == "servers: local (SERVERS=local)"


def test_both_urls() -> None:
    """
    Both URLs, and SERVERS unset, mean the environment's servers.
    """
    assert str(choose(URLS)) == "servers: env (DATABASE_URL and AMQP_URL are set)"


def test_env_without_urls() -> None:
    """
    SERVERS=env without the URLs is refused, and the missing ones are named.
    """
    with pytest.raises(ChoiceError, match="SERVERS=env needs AMQP_URL"):
        choose({"SERVERS": "env", "DATABASE_URL": URLS["DATABASE_URL"]})


def test_unknown() -> None:
    """
    A word that is no choice is refused with those that are.
    """
    with pytest.raises(ChoiceError, match="SERVERS=cloud is none of env, docker, local"):
        choose({"SERVERS": "cloud"})


def test_engine_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    With nothing asked for, an engine that can serve is taken.
    """
    monkeypatch.setattr(docker_engine, "why_not", lambda: None)

    assert str(choose({})) == "servers: docker (DATABASE_URL and AMQP_URL not set, and a Docker engine answers)"


def test_no_engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """
    Without an engine the machine's own programs are taken, and the line says so.
    """
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/nobody.sock")
    choice = choose({"AMQP_URL": URLS["AMQP_URL"]})

    assert str(choice) == "servers: local (DATABASE_URL not set, and no Docker engine answers)"


def test_engine_without_images(monkeypatch: pytest.MonkeyPatch, empty_engine: str) -> None:
    """
    An engine that has no images and no registry is passed over, and the line says so.
    """
    monkeypatch.setenv("DOCKER_HOST", empty_engine)
    choice = choose({})

    assert choice.kind == "local"
    assert choice.reason.endswith("the Docker engine has no postgres:17 and cannot pull it")


def test_docker_without_engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """
    SERVERS=docker does not fall back to something else.
    """
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/nobody.sock")

    with pytest.raises(ChoiceError, match="SERVERS=docker: no Docker engine answers"):
        choose({"SERVERS": "docker"})


class EmptyEngine(BaseHTTPRequestHandler):
    """An engine in the state of a new machine without a network: alive, no images, no registry."""

    def do_GET(self) -> None:
        if self.path.endswith("/version"):
            self.answer(200, {"ApiVersion": "1.45"})
        else:
            self.answer(404, {"message": "No such image"})

    def do_POST(self) -> None:
        self.answer(500, {"message": "dial tcp: lookup registry: no such host"})

    def answer(self, status: int, body: dict[str, str]) -> None:
        encoded = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(encoded)))
        self.end_headers()
        self.wfile.write(encoded)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def empty_engine() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), EmptyEngine) as server:
        thread = threading.Thread(target=server.serve_forever, name="empty engine")
        thread.start()
        yield f"tcp://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()
