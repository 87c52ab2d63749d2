"""Ask a health endpoint once: `python -m orders.healthcheck URL`, for containers, whose image has no curl."""

import http.client
import sys
from urllib.parse import urlsplit

MAX_BYTES = 1 << 16


def main() -> None:
    """Exit 0 if the URL answers 200 within 3 s, else say what it answered and exit 1."""
    url = urlsplit(sys.argv[1])
    connection = http.client.HTTPConnection(url.netloc, timeout=3)
    try:
        connection.request("GET", url.path)
        answer = connection.getresponse()
        print(answer.status, answer.read(MAX_BYTES).decode(errors="replace"))
    except OSError as error:
        sys.exit(f"no answer: {error}")
    sys.exit(0 if answer.status == 200 else 1)


if __name__ == "__main__":
    main()
