"""What the broker has to have, told from what it says."""

from typing import Any

import aiormq
import pytest
from aiormq.channel import Channel

from relay.management import Binding
from relay.message import Route
from relay.publisher import BrokerLost
from relay.topology import fault_of_queue, fault_of_shape, leads_to_one, matches, shape_of


@pytest.mark.parametrize(
    ("pattern", "routing_key", "taken"),
    [
        ("order.placed", "order.placed", True),
        ("order.placed", "order.done", False),
        ("order.*", "order.placed", True),
        ("order.*", "order", False),
        ("order.*", "order.placed.late", False),
        ("#", "order.placed", True),
        ("#", "", True),
        ("order.#", "order", True),
        ("#.placed", "order.was.placed", True),
        ("#.placed", "order.placed.late", False),
        ("*.#.late", "order.placed.late", True),
        ("", "order", False),
    ],
)
def test_topics(pattern: str, routing_key: str, taken: bool) -> None:
    """
    A star is one word, a hash any number, none included.
    """
    assert matches(pattern, routing_key) is taken


def test_a_route_leads_to_a_queue_by_its_own_exchange() -> None:
    """
    A binding of another exchange is none of this route.
    """
    route = Route("orders", "order.placed")

    assert leads_to_one(route, [Binding("else", "#"), Binding("orders", "order.*")])
    assert not leads_to_one(route, [Binding("else", "#"), Binding("orders", "order.done"), Binding("", "orders.work")])


@pytest.mark.parametrize(
    ("kind", "shape", "complaint"),
    [
        ("queue", {}, ""),
        ("queue", {"x-delivery-limit": "20"}, ""),
        ("queue", {"durable": "false"}, "queue 'it' is not durable"),
        ("queue", {"auto_delete": "true"}, "queue 'it' deletes itself"),
        ("queue", {"x-queue-type": "classic"}, "queue 'it' is no quorum queue"),
        ("exchange", {"type": "fanout"}, ""),
        ("exchange", {"internal": "true"}, "exchange 'it' is internal"),
    ],
)
def test_shapes(kind: str, shape: dict[str, str], complaint: str) -> None:
    """
    Each shape that would lose a confirmed message is named.
    """
    told = fault_of_shape(kind, "it", shape)

    assert told.startswith(complaint)
    assert bool(told) == bool(complaint)


@pytest.mark.parametrize(
    ("found", "bindings", "complaint"),
    [
        ({}, ["orders"], ""),
        ({}, ["else"], "queue 'q' is bound to none of orders"),
        ({"arguments": {"x-max-length": 5}}, ["orders"], "queue 'q' has max-length without"),
        (
            {"effective_policy_definition": {"max-length-bytes": 5}},
            ["orders"],
            "queue 'q' has max-length-bytes without",
        ),
        ({"arguments": {"x-max-length": 5, "x-overflow": "reject-publish"}}, ["orders"], ""),
        ({"arguments": {"x-message-ttl": 5}}, ["orders"], "queue 'q' drops messages after message-ttl"),
        (
            {"arguments": {"x-message-ttl": 5, "x-dead-letter-exchange": "dead"}},
            ["orders"],
            "queue 'q' drops messages after message-ttl (an argument of the queue): take it away",
        ),
        (
            {"effective_policy_definition": {"message-ttl": 5}, "policy": "all", "operator_policy": None},
            ["orders"],
            "queue 'q' drops messages after message-ttl (policy 'all'): take it away",
        ),
        ({"effective_policy_definition": {"expires": 5}}, ["orders"], "queue 'q' is deleted with its messages while"),
        ({"arguments": {"x-expires": 5}}, ["orders"], "queue 'q' is deleted with its messages while"),
        (
            {
                "arguments": {"x-delivery-limit": 1000},
                "effective_policy_definition": {"delivery-limit": 2},
                "operator_policy": "low",
            },
            ["orders"],
            "queue 'q' gives messages up after 2 returns, by delivery-limit (policy 'low'): take it away, or set it to",
        ),
        ({"effective_policy_definition": {"delivery-limit": 999}}, ["orders"], "queue 'q' gives messages up after 999"),
        ({"effective_policy_definition": {"delivery-limit": 1000}}, ["orders"], ""),
        ({"effective_policy_definition": {"delivery-limit": -1}}, ["orders"], ""),
        ({"arguments": {"x-delivery-limit": 7}}, ["orders"], ""),
        ({"arguments": {"x-delivery-limit": 7}, "effective_policy_definition": {"delivery-limit": 20}}, ["orders"], ""),
    ],
)
def test_queues(found: dict[str, object], bindings: list[str], complaint: str) -> None:
    """
    A queue that gets nothing, or drops what it confirmed, is named with what mends it.
    """
    told = fault_of_queue("q", ("orders",), found, [Binding(source, "#") for source in bindings])

    assert told.startswith(complaint)
    assert bool(told) == bool(complaint)


@pytest.mark.parametrize("when", ["between two questions", "within one"])
async def test_a_connection_lost_meanwhile_is_an_outage(
    when: str, topology: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    aiormq has words of its own for a question on a connection or channel that has ended: they are a lost broker, too.
    """
    declare = Channel.queue_declare

    async def ended_before(channel: Channel, *args: Any, **kwargs: Any) -> Any:
        await channel.connection.close()
        return await declare(channel, *args, **kwargs)

    async with aiormq.connect(topology) as connection:
        if when == "within one":
            monkeypatch.setattr(Channel, "queue_declare", ended_before)
        else:
            await connection.close()
        with pytest.raises(BrokerLost):
            await shape_of(connection, "queue", "orders.work")
