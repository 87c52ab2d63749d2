"""Text of others, such as a handler's reason, in a form that PostgreSQL can store."""

MAX_REASON_CHARACTERS = 500


def storable_text(reason: str) -> str:
    """Return a reason without NUL and lone surrogates, at most MAX_REASON_CHARACTERS long, and never empty."""
    text = reason.encode(errors="replace").decode().replace("\0", "\N{REPLACEMENT CHARACTER}")
    return text.strip()[:MAX_REASON_CHARACTERS] or "no reason given"
