"""Which messages of a claim go when."""

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.message import Message, Route
from relay.waves import Waves, most_of_key, sort_out
from tests.relay.messages import make_message


def ids(messages: list[Message]) -> list[int]:
    return [message.id for message in messages]


def test_one_of_each_key() -> None:
    """
    A wave holds the first message of each key, in order of ids within the key.
    """
    a1, a2, b3 = make_message(1, "a"), make_message(2, "a"), make_message(3, "b")
    waves = Waves([b3, a2, a1])

    first = waves.next()

    assert {1, 3} == set(ids(first))
    waves.passed(a1)
    waves.passed(b3)
    assert ids(waves.next()) == [2]
    waves.passed(a2)
    assert waves.next() == []


def test_a_stopped_key_stops_with_all_behind() -> None:
    """
    A message that has to wait keeps the later ones of its key, and nobody else's.
    """
    a1, a2, b3, b4 = make_message(1, "a"), make_message(2, "a"), make_message(3, "b"), make_message(4, "b")
    waves = Waves([a1, a2, b3, b4])

    assert ids(waves.stopped(a1)) == [1, 2]
    waves.passed(b3)

    assert ids(waves.next()) == [4]


def test_no_event_id_twice() -> None:
    """
    Two keys with one event id do not meet in a wave: a return could not be told apart.
    """
    a, b = make_message(1, "a", event_id="same"), make_message(2, "b", event_id="same")
    waves = Waves([a, b])

    (first,) = waves.next()
    waves.passed(first)

    assert len({first.id, *ids(waves.next())}) == 2


def test_what_is_left_keeps_its_followers() -> None:
    """
    A key with a row that stays pending is told, since what would be parked behind it would go first; a row that is
    parked already holds nobody up.
    """
    waves = Waves(
        [
            make_message(1, "a"),
            make_message(2, "b"),
            make_message(3, "c"),
            make_message(4, "d", parked=True),
            make_message(5, "a"),
        ]
    )
    waves.passed(make_message(1, "a"))
    waves.put_off(make_message(2, "b"))
    waves.stopped(make_message(3, "c"))

    assert {key: ids(left) for key, left in waves.left().items()} == {"a": [5], "b": [2]}


def test_the_order_is_that_of_ids() -> None:
    """
    Clocks say nothing: of two rows of a key the lower id goes first, however the hosts' times stand.
    """
    early, late = make_message(1, "a"), make_message(2, "a")
    late = msgspec.structs.replace(late, created=early.created - 3600)

    assert ids(Waves([early, late]).next()) == [1]
    assert ids(Waves([late, early]).next()) == [1]


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("xyz")), max_size=12),
    st.lists(st.booleans(), min_size=12, max_size=12),
)
def test_any_schedule_keeps_the_order(rows: list[tuple[str, str]], passes: list[bool]) -> None:
    """
    Whatever passes or stops: keys and event ids never meet, each key's ids rise, nothing follows a stop.
    """
    waves = Waves([make_message(at, key, event_id=event) for at, (key, event) in enumerate(rows, start=1)])
    seen: dict[str, int] = {}
    stopped: set[str] = set()
    while wave := waves.next():
        assert len({message.key for message in wave}) == len(wave) == len({message.event_id for message in wave})
        for message in wave:
            assert message.key not in stopped
            assert seen.get(message.key, 0) < message.id
            seen[message.key] = message.id
            if passes[message.id - 1]:
                waves.passed(message)
            else:
                stopped.add(message.key)
                assert message.id == waves.stopped(message)[0].id


def test_sort_out() -> None:
    """
    Parked rows go out; a fresh row is parked if its key waits, if its route is closed, or if one before it was parked.
    """
    closed = Route("orders", "closed")
    messages = [
        make_message(1, "a", parked=True, key_waits=True),
        make_message(2, "b", key_waits=True),
        make_message(3, "c"),
        make_message(4, "d", routing_key="closed"),
        make_message(5, "d"),
        make_message(6, "c"),
    ]

    publish, park = sort_out(messages, lambda route: route != closed, len(messages))

    assert ids(publish) == [1, 3, 6]
    assert ids(park) == [2, 4, 5]


def test_a_key_has_a_share_of_a_claim() -> None:
    """
    Of a key with many rows only so many go out, those that are parked already among them; the others are parked.
    """
    hot = [make_message(1, "hot"), make_message(2, "hot"), make_message(4, "hot"), make_message(6, "hot")]
    others = [make_message(3, "a"), make_message(5, "b")]

    publish, park = sort_out(sorted(hot + others, key=lambda message: message.id), lambda _: True, 2)

    assert (ids(publish), ids(park)) == ([1, 2, 3, 5], [4, 6])
    assert [most_of_key(rows) for rows in (1, 50, 500, 2000)] == [10, 10, 50, 100]
