"""What the faults of the broker do to it, where a run of the rig once showed that they did something else."""

import aiormq
import pytest
from aiormq.exceptions import PublishError

from dev.chaos.broker_faults import bind
from dev.chaos.recorder import QUEUE
from orders.broker.topology import WORK_QUEUE
from orders.model import events


async def test_seed_1_without_bindings_no_required_event_reaches_a_queue(topology: str) -> None:
    """
    A redriven order's event went to the work queue while the recorder's was unbound: nobody had lost it, and nobody
    had heard it.
    """
    async with aiormq.connect(topology) as connection:
        channel = await connection.channel(on_return_raises=True)
        await channel.queue_declare(QUEUE, exclusive=True)
        for queue in (WORK_QUEUE, QUEUE):
            await bind(channel, queue, wanted=False)
        for event_type in events.REQUIRED:
            with pytest.raises(PublishError):
                await channel.basic_publish(b"x", exchange=events.EXCHANGE, routing_key=event_type, mandatory=True)

        for queue in (WORK_QUEUE, QUEUE):
            await bind(channel, queue, wanted=True)
        for event_type in events.REQUIRED:
            await channel.basic_publish(b"x", exchange=events.EXCHANGE, routing_key=event_type, mandatory=True)
        declared = [await channel.queue_declare(queue, passive=True) for queue in (WORK_QUEUE, QUEUE)]

    assert [len(events.REQUIRED)] * 2 == [each.message_count for each in declared]
