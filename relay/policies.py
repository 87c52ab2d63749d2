"""Looks now and then for a policy that makes RabbitMQ give up messages of a required queue: policies come at any time.

At its start the relay refuses such a queue (topology). Later it goes on, since what it publishes may still be worked in
time, and warns.
"""

import asyncio
import contextlib
import logging

from relay.management import Management, ManagementUnavailable, limit_faults
from relay.publisher import BrokerLost, Publisher
from relay.settings import Settings
from relay.state import RelayState

log = logging.getLogger("relay")


async def watch_policies(settings: Settings, publisher: Publisher, state: RelayState, stop: asyncio.Event) -> None:
    """Look every `upkeep_seconds` until `stop` is set; log each fault once, when it appears, and when it is gone."""
    known: set[str] = set()
    while not stop.is_set():
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), settings.upkeep_seconds)
            return
        try:
            management = Management(settings.management_urls, publisher.connection.vhost)
            state.show_policy_faults(await limit_faults(management, settings.queue_names))
        except (BrokerLost, ManagementUnavailable):
            continue  # the guard says so, where a route needs the answer
        faults = {fault.text for fault in state.policy_faults}
        for fault in sorted(faults - known):
            log.warning("%s", fault)
        for fault in sorted(known - faults):
            log.info("mended: %s", fault)
        known = faults
