"""Looks now and then for policies that make RabbitMQ give up messages of the worker's queues: they come at any time.

A worker goes on under such a policy: it is the one that brings the orders back.
"""

import asyncio
import contextlib
import logging
from collections.abc import Sequence

from prometheus_client import Gauge
from yarl import URL

from orders.broker.management import LimitFault, Management, ManagementUnavailable, limit_faults
from orders.broker.topology import WORK_QUEUE

log = logging.getLogger(__name__)

SETTING = "ORDERS_MANAGEMENT_URL"
LOOK_SECONDS = 60.0
AGAIN_SECONDS = 5.0  # after a look, where someone asks for another

FAULTS = Gauge(
    "orders_worker_policy_faults", "1 for a policy that makes RabbitMQ give up messages", ["queue", "policy"]
)


def management_of(management_urls: str, amqp_urls: str) -> Management:
    """Return a client of the management interface, for the vhost of AMQP_URL; both may have several URLs."""
    vhost = URL(amqp_urls.split(",")[0].strip()).path[1:] or "/"
    return Management([url.strip() for url in management_urls.split(",") if url.strip()], vhost, SETTING)


class PolicyWatch:
    """Knows the policies that give up messages of the work queue and the dead-letter queue, where it can see them."""

    def __init__(self, management_urls: str, amqp_urls: str) -> None:
        """`management_urls`: ORDERS_MANAGEMENT_URL, empty if there is none; `amqp_urls`: AMQP_URL, for its vhost."""
        self.faults: Sequence[LimitFault] = ()
        self._management = management_of(management_urls, amqp_urls) if management_urls else None
        self._soon = asyncio.Event()

    def cause(self, limit: str) -> str:
        """Return which policy sets this limit on the work queue, as far as it is known, and what to do about it."""
        for fault in self.faults:
            if (fault.queue, fault.limit) == (WORK_QUEUE, limit):
                return fault.text
        self._soon.set()
        hint = "" if self._management else f"; with {SETTING} the worker names it"
        return f"a policy sets {limit} on {WORK_QUEUE}, or did: take it away{hint}"

    async def run(self) -> None:
        """Look every LOOK_SECONDS, and sooner after a message was given up; log each fault when it comes and goes."""
        last_error = ""
        while self._management is not None:
            self._soon.clear()
            try:
                self._show(await limit_faults(self._management, [WORK_QUEUE]))
                last_error = ""
            except ManagementUnavailable as error:
                if str(error) != last_error:
                    log.warning("policies are not seen: %s", error)
                last_error = str(error)
            await asyncio.sleep(AGAIN_SECONDS)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_SECONDS - AGAIN_SECONDS):
                    await self._soon.wait()

    def _show(self, faults: Sequence[LimitFault]) -> None:
        before, now = ({fault.text for fault in some} for some in (self.faults, faults))
        for text in sorted(now - before):
            log.warning("%s", text)
        for text in sorted(before - now):
            log.info("mended: %s", text)
        self.faults = faults
        FAULTS.clear()
        for fault in faults:
            FAULTS.labels(fault.queue, fault.policy).set(1)
