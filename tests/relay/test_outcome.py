"""What is written down of a claim, and what is taken back."""

from relay.message import Route
from relay.outcome import Outcome
from relay.replies import Classified, Rejected, RouteFailure, Sent, Unrouted
from relay.waves import Waves
from tests.relay.messages import make_message

PLACED = Route("orders", "order.placed")


def test_each_reply_has_its_place() -> None:
    """
    Sent and unrouted rows are settled; route failures and rejections park the row and all behind it, once, and only a
    rejection blocks the key.
    """
    rows = [make_message(at, key, parked=at == 5) for at, key in enumerate("abcddcx", start=1)]
    waves, outcome = Waves(rows), Outcome()

    replies: list[Classified] = [Sent(), Unrouted(), RouteFailure("wet"), Rejected("no")]
    for row, classified in zip(rows, replies, strict=False):
        stopped = outcome.take(row, classified)
        if stopped is None:
            waves.passed(row)
        else:
            outcome.wait(waves.stopped(row), stopped)

    assert outcome.sent == [rows[0]]
    assert outcome.unrouted == [rows[1]]
    assert outcome.park == {"wet": [rows[2], rows[5]], "no": [rows[3]]}
    assert outcome.block == {"d": "no"}
    assert waves.next() == [rows[6]]


def test_what_is_not_proven_is_taken_back() -> None:
    """
    A required row whose queue is not proven is parked, not sent; rows of other routes, and those that need no queue,
    stay sent; one that was parked already is left where it is.
    """
    doubtful, parked = make_message(1, "a"), make_message(2, "b", parked=True)
    optional, elsewhere = make_message(3, "c", required=False), make_message(4, "d", routing_key="other")
    outcome = Outcome(sent=[doubtful, parked, optional, elsewhere])

    outcome.withdraw({PLACED: "queue gone"})

    assert outcome.sent == [optional, elsewhere]
    assert outcome.park == {"queue gone": [doubtful]}


def test_what_is_taken_back_has_to_go_first() -> None:
    """
    What was rejected behind a row that is taken back does not block its key yet: the key goes on by itself up to there.
    """
    first, rejected, other = make_message(1, "a"), make_message(2, "a"), make_message(3, "b")
    outcome = Outcome(sent=[first], park={"no": [rejected, other]}, block={"a": "no", "b": "no"})

    outcome.withdraw({PLACED: "queue gone"})

    assert outcome.park == {"no": [rejected, other], "queue gone": [first]}
    assert outcome.block == {"b": "no"}


def test_what_went_behind_it_is_taken_back_too() -> None:
    """
    What followed a row that is taken back follows it again: else it would be settled before it, and whoever misses the
    first would hear the second first. What went before it stays sent, as do other keys.
    """
    before, head = make_message(1, "a", required=False), make_message(2, "a")
    behind, unheard = make_message(3, "a", required=False), make_message(5, "a", required=False)
    other = make_message(4, "b", required=False)
    outcome = Outcome(sent=[before, head, behind, other], unrouted=[unheard])

    outcome.withdraw({PLACED: "queue gone"})

    assert outcome.sent == [before, other]
    assert outcome.unrouted == []
    assert outcome.park == {"queue gone": [head, behind, unheard]}


def test_nothing_doubtful_changes_nothing() -> None:
    """
    A route that nothing required took leaves all as it is.
    """
    sent = [make_message(1, required=False)]
    outcome = Outcome(sent=sent, park={"wet": [make_message(2, "b")]})

    outcome.withdraw({PLACED: "queue gone"})

    assert outcome == Outcome(sent=[make_message(1, required=False)], park={"wet": [make_message(2, "b")]})


def test_behind_a_row_that_stays_pending_nothing_is_parked() -> None:
    """
    What was claimed to be parked is parked, and before it what is left of its key: behind a row that stays pending it
    would overtake that. A key with nothing to park stays pending.
    """
    outcome = Outcome()
    a2, b1, b2, c1 = make_message(4, "a"), make_message(1, "b"), make_message(3, "b"), make_message(2, "c")

    outcome.wait_behind([b2, a2], {"b": [b1], "c": [c1]})

    assert outcome.park == {"its key or its route waits": [b1, b2, a2]}
    outcome = Outcome()
    outcome.wait_behind([], {"b": [b2]})
    assert outcome.park == {}


def test_counts_of_an_outcome() -> None:
    """
    Sent, unrouted and parked rows are changed; each sent row's latency is counted from the row's time.
    """
    sent, unrouted, parked = make_message(1, "a"), make_message(2, "b"), [make_message(3, "c"), make_message(4, "c")]
    outcome = Outcome(sent=[sent], unrouted=[unrouted], park={"no": parked})

    assert (outcome.parked_rows, outcome.changed_rows) == (2, 4)
    assert outcome.latencies(sent.created + 1.5) == [1.5]
