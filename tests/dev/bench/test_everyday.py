"""What counts the requests to the management interface changes none of them."""

import http.server
import threading
import urllib.request

from dev.bench.everyday import RequestCounter


class _Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.path)))
        self.end_headers()
        self.wfile.write(self.path.encode())

    def log_message(self, *_: object) -> None:
        pass


def test_requests_are_counted() -> None:
    """
    Each request passes the counter, which keeps the credentials of its URL, and is counted once.
    """
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with RequestCounter(f"http://user:secret@127.0.0.1:{server.server_port}") as counter:
            assert counter.url.startswith("http://user:secret@127.0.0.1:")
            way = counter.url.replace("user:secret@", "")
            for path in ("/one", "/two"):
                with urllib.request.urlopen(way + path, timeout=10) as answer:
                    assert answer.read() == path.encode()
        server.shutdown()

    assert counter.requests == 2
