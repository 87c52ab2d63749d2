"""Conditional requests (If-None-Match, RFC 9110) and the wait for a change (Prefer, RFC 7240)."""

import re
from hashlib import blake2b

LONGEST_WAIT_SECONDS = 30  # nginx waits 40 s for such an answer

_WAIT = re.compile(r"""(?:^|[,;\s])wait\s*=\s*"?([0-9]+)"?\s*(?:$|[,;])""", re.IGNORECASE).search
_TAG = re.compile(r"""(?:W/)?("[^"]*")""").findall


def tag_of(body: bytes) -> str:
    """Return the ETag of a body, with its quotes: a strong one, since equal tags mean equal bytes."""
    return f'"{blake2b(body, digest_size=12).hexdigest()}"'


def matches(if_none_match: str, tag: str) -> bool:
    """Return whether an If-None-Match names the tag, by the weak comparison (RFC 9110, section 13.1.2)."""
    return if_none_match.strip() == "*" or tag in _TAG(if_none_match)


def wait_of(prefer: str) -> int | None:
    """Return the seconds that a Prefer header asks to wait, at most LONGEST_WAIT_SECONDS.

    Returns None without a valid wait: RFC 7240 has a server ignore preferences that it does not understand.
    """
    found = _WAIT(prefer)
    return min(int(found[1]), LONGEST_WAIT_SECONDS) if found and len(found[1]) < 10 else None
