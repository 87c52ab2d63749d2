"""An error's message as text that can be logged and stored."""


def message_of(error: Exception) -> str:
    """Return an error's message, as UTF-8 can encode it; "" if the error fails to make one, as a handler's may."""
    try:
        return str(error).encode(errors="replace").decode()
    except Exception:  # whatever its `__str__` raises
        return ""


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or the name of its class if the message is empty."""
    return next(iter(message_of(error).strip().splitlines()), type(error).__name__)
