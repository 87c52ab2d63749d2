"""The files for a private nginx: deploy/nginx's own templates, filled in for this run."""

import re
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template

from dev.sandbox.process import ROOT, StartError, write_atomically

RULES = ROOT / "deploy" / "nginx"
STOP_SIGNAL = signal.SIGQUIT  # finishes what is in hand; SIGTERM would drop it
TEMPLATES = {"nginx.conf": "nginx.conf", "rate-limit.conf.template": "rate-limit.conf"}


def render(folder: Path, port: int, api_ports: Sequence[int], access_log: Path, environ: Mapping[str, str]) -> Path:
    """Write the configuration into the folder and return its main file."""
    folder.mkdir(exist_ok=True)
    # An upstream without a server is no configuration; one that is down answers 502 until an api is there.
    upstream = " ".join(f"server 127.0.0.1:{each} max_fails=0;" for each in api_ports) or "server 127.0.0.1:9 down;"
    limit = rate_limit(environ)
    values = {
        "LISTEN": f"127.0.0.1:{port}",
        "UPSTREAM_SERVERS": upstream,
        "RULES_DIR": str(RULES),
        "CONF_DIR": str(folder),
        "TEMP_DIR": str(folder),
        # The supervisor's own file holds the same pid; nginx insists on writing one.
        "PID_FILE": str(folder / "nginx.pid"),
        "ERROR_LOG": "stderr",
        "ACCESS_LOG": str(access_log),
        "ORDERS_RATE_LIMIT": str(limit or 1),
        "ORDERS_RATE_LIMITED": "on" if limit else "",
    }
    for source, target in TEMPLATES.items():
        text = Template((RULES / source).read_text()).safe_substitute(values)
        write_atomically(folder / target, text)
    return folder / "nginx.conf"


def rate_limit(environ: Mapping[str, str]) -> int:
    """Return requests per second and client; 0 is no limit. Raise StartError for what is no whole number."""
    given = environ.get("ORDERS_RATE_LIMIT", "") or "0"
    if not re.fullmatch("[0-9]{1,9}", given):
        raise StartError(
            f"ORDERS_RATE_LIMIT is wrong: it is a whole number of requests per second and client, not {given!r}; "
            "0: no limit"
        )
    return int(given)
