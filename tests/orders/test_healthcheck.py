"""A container's health check is as healthy as the endpoint's answer."""

import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from dev.sandbox.ports import free_port
from orders import healthcheck


@pytest.fixture
def endpoint() -> Iterator[str]:
    """Where a server answers with the status that the path names."""

    class Endpoint(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(int(self.path.removeprefix("/")))
            self.end_headers()
            self.wfile.write(b"the state \xff")

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Endpoint) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(("status", "code"), [(200, 0), (204, 1), (404, 1), (503, 1)])
def test_only_200_is_healthy(
    endpoint: str, status: int, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """
    The answer is printed, for `docker inspect`.
    """
    monkeypatch.setattr(sys, "argv", ["healthcheck", f"{endpoint}/{status}"])

    with pytest.raises(SystemExit) as ended:
        healthcheck.main()

    assert ended.value.code == code
    assert capsys.readouterr().out.startswith(f"{status} ")


def test_silence_is_not_healthy(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Where nothing listens, the reason is the message.
    """
    monkeypatch.setattr(sys, "argv", ["healthcheck", f"http://127.0.0.1:{free_port()}/health/live"])

    with pytest.raises(SystemExit) as ended:
        healthcheck.main()

    assert str(ended.value.code).startswith("no answer: ")
