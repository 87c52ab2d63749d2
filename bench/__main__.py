"""Run the measurements that are named, or the main ones: `python -m bench [NAME …]`; FULL=1 is the long form."""

import importlib
import os
import sys

from rich.console import Console

from bench.measurement import Bench, SharedServers
from bench.record import Form

# The main ones take less than ten minutes together; all of them, in the long form, less than sixty.
MAIN = ("placing", "relay", "end_to_end")
NAMES = (*MAIN, "footprint", "streams", "away")


def main() -> None:
    """Run each in turn."""
    console = Console()
    form: Form = "full" if os.environ.get("FULL", "") not in ("", "0") else "short"
    wanted = sys.argv[1:] or (NAMES if form == "full" else MAIN)
    for name in wanted:
        if name not in NAMES:
            sys.exit(f"bench: there is no {name}; there is {', '.join(NAMES)}")
    with SharedServers(console) as shared:
        for name in wanted:
            bench = Bench(name, form, console, shared)
            importlib.import_module(f"bench.{name}").measure(bench)
            bench.finish()


if __name__ == "__main__":
    main()
