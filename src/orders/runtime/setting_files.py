"""Settings from files: NAME_FILE names the file that holds the value of NAME, as container engines mount secrets."""

from collections.abc import Mapping
from pathlib import Path


def value_of(environ: Mapping[str, str], name: str) -> str | None:
    """Return the value of the setting `name`, without the line break at its file's end; None if it is not set.

    Raises ValueError, with one line, if both forms are set or the file cannot be read.
    """
    path = environ.get(f"{name}_FILE")
    if not path:
        return environ.get(name)
    if environ.get(name):
        raise ValueError(f"{name} and {name}_FILE are both set: set one of them")
    try:
        return Path(path).read_text(encoding="utf-8").rstrip("\r\n")
    except UnicodeDecodeError:
        raise ValueError(f"{name}_FILE is wrong: {path} holds no UTF-8 text") from None
    except OSError as error:
        raise ValueError(f"{name}_FILE is wrong: {path}: {error.strerror}") from None
