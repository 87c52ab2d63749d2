"""What an error says, as text that can be logged and kept."""


def message_of(error: Exception) -> str:
    """Return an error's message, as UTF-8 can say it; a handler's may fail at telling it."""
    try:
        return str(error).encode(errors="replace").decode()
    except Exception:  # whatever somebody else's `__str__` raises
        return ""


def first_line(error: Exception) -> str:
    """Return an error's message as one line; where it has none, the error's name."""
    return next(iter(message_of(error).strip().splitlines()), type(error).__name__)
