"""What a client knows already, and how long it would wait for news: If-None-Match, Prefer."""

import re
from hashlib import blake2b

LONGEST_WAIT_SECONDS = 30  # nginx gives such an answer 40 s

_WAIT = re.compile(r"""(?:^|[,;\s])wait\s*=\s*"?([0-9]+)"?\s*(?:$|[,;])""", re.IGNORECASE).search
_TAG = re.compile(r"""(?:W/)?("[^"]*")""").findall


def tag_of(body: bytes) -> str:
    """Return the ETag of a body: a strong one, since equal tags mean equal bytes."""
    return f'"{blake2b(body, digest_size=12).hexdigest()}"'


def matches(if_none_match: str, tag: str) -> bool:
    """Say whether an If-None-Match names the tag; the comparison is the weak one (RFC 9110, section 13.1.2)."""
    return if_none_match.strip() == "*" or tag in _TAG(if_none_match)


def wait_of(prefer: str) -> int | None:
    """Return for how many seconds a Prefer header wants to wait (RFC 7240), at most LONGEST_WAIT_SECONDS."""
    found = _WAIT(prefer)
    return min(int(found[1]), LONGEST_WAIT_SECONDS) if found and len(found[1]) < 10 else None
