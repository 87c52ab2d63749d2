"""Request a health endpoint once: `python -m orders.healthcheck URL`. The container image has no curl."""

import http.client
import sys
from contextlib import closing
from urllib.parse import urlsplit

MAX_BYTES = 1 << 16


def main() -> None:
    """Print the answer of the URL; exit 0 if its status is 200, else 1, also if it does not answer within 3 s."""
    url = urlsplit(sys.argv[1])
    with closing(http.client.HTTPConnection(url.netloc, timeout=3)) as connection:
        try:
            connection.request("GET", url.path)
            with connection.getresponse() as answer:
                print(answer.status, answer.read(MAX_BYTES).decode(errors="replace"))
        except OSError as error:
            sys.exit(f"no answer: {error}")
    sys.exit(0 if answer.status == 200 else 1)


if __name__ == "__main__":
    main()
