"""Run the measurements that are named, or all: `python -m bench [NAME …]`."""

import importlib
import sys

NAMES = ("placing",)


def main() -> None:
    """Run each in turn."""
    for name in sys.argv[1:] or NAMES:
        if name not in NAMES:
            sys.exit(f"bench: there is no {name}; there is {', '.join(NAMES)}")
        importlib.import_module(f"bench.{name}").main()


if __name__ == "__main__":
    main()
