"""Policies of RabbitMQ, put as an operator does: by the management interface."""

from typing import Literal
from urllib.parse import quote, urlsplit

import httpx

from dev.sandbox.servers import Servers
from tests.eventually import eventually

NAME = "test"  # of every policy that a test puts


async def put_policy(
    servers: Servers,
    amqp_url: str,
    pattern: str,
    definition: dict[str, object],
    *,
    queue: str = "orders.work",
    kind: Literal["policies", "operator-policies"] = "policies",
) -> None:
    """Have the queues of this pattern follow a policy, and wait until `queue`, which is one of them, does."""
    vhost = quote(urlsplit(amqp_url).path[1:], safe="")
    async with _client(servers) as client:
        policy = {"pattern": pattern, "definition": definition, "apply-to": "queues"}
        (await client.put(f"/{kind}/{vhost}/{NAME}", json=policy)).raise_for_status()

        async def is_followed() -> bool:
            found = (await client.get(f"/queues/{vhost}/{queue}")).raise_for_status().json()
            return bool(found.get("effective_policy_definition") == definition)

        await eventually(is_followed, 20)


async def remove_policy(servers: Servers, amqp_url: str) -> None:
    """Take away what `put_policy` has put."""
    vhost = quote(urlsplit(amqp_url).path[1:], safe="")
    async with _client(servers) as client:
        (await client.delete(f"/policies/{vhost}/{NAME}")).raise_for_status()


def _client(servers: Servers) -> httpx.AsyncClient:
    url = urlsplit(servers.management_url or "")
    return httpx.AsyncClient(
        base_url=f"http://{url.hostname}:{url.port}/api",
        auth=(url.username or "", url.password or ""),
        trust_env=False,
    )
