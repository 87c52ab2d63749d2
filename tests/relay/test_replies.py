"""Which answers are a failure of the route and which reject the message."""

import pytest

from relay.message import CONFIRMED, Answer, Reply
from relay.replies import (
    Closure,
    Rejected,
    RouteFailure,
    Sent,
    Unrouted,
    classify,
    split_suspects,
    whose_channel_closure,
    whose_connection_closure,
)
from tests.relay.messages import make_message


def test_confirmed_is_sent() -> None:
    """
    Only a confirm without a return makes a row sent.
    """
    assert Sent() == classify(make_message(1), CONFIRMED)


def test_returns() -> None:
    """
    A return is a route failure for a row that has to reach a queue, and the end of one that need not.
    """
    returned = Reply(Answer.RETURNED, "312 NO_ROUTE")

    assert RouteFailure("returned: 312 NO_ROUTE") == classify(make_message(1, required=True), returned)
    assert Unrouted() == classify(make_message(1, required=False), returned)


@pytest.mark.parametrize("answer", [Answer.NACKED, Answer.CLOSED_ROUTE, Answer.UNANSWERED, Answer.WITHHELD])
@pytest.mark.parametrize("required", [True, False])
def test_route_failures(answer: Answer, required: bool) -> None:
    """
    Nacks, closed routes and silence say nothing against the message.
    """
    assert RouteFailure(answer.value) == classify(make_message(1, required=required), Reply(answer))


@pytest.mark.parametrize("answer", [Answer.CLOSED_ALONE, Answer.UNENCODABLE])
def test_rejections(answer: Answer) -> None:
    """
    What fails alone, or cannot be said in AMQP, will always fail.
    """
    assert Rejected(f"{answer.value}: 406 too large") == classify(make_message(1), Reply(answer, "406 too large"))


@pytest.mark.parametrize(
    ("code", "whose"),
    [(403, Closure.ROUTE), (404, Closure.ROUTE), (406, Closure.MESSAGE), (541, Closure.OUTAGE), (None, Closure.OUTAGE)],
)
def test_channel_closures(code: int | None, whose: Closure) -> None:
    """
    403 and 404 are of the route, an inner error is the broker's own, the rest is of what was sent.
    """
    assert whose is whose_channel_closure(code)


@pytest.mark.parametrize(
    ("code", "whose"),
    [
        (501, Closure.MESSAGE),
        (506, Closure.MESSAGE),
        (320, Closure.OUTAGE),
        (530, Closure.OUTAGE),
        (None, Closure.OUTAGE),
    ],
)
def test_connection_closures(code: int | None, whose: Closure) -> None:
    """
    A 50x answers what was sent; a forced close, a refusal of the vhost and a cut wire are outages.
    """
    assert whose is whose_connection_closure(code)


def test_suspects_of_a_route() -> None:
    """
    A missing exchange names its messages, and the others go again at once.
    """
    lost, fine = make_message(1, "a", exchange="gone"), make_message(2, "b")
    text = "404 NOT_FOUND - no exchange 'gone' in vhost '/'"

    assert ([lost], [[fine]]) == split_suspects(Closure.ROUTE, text, [lost, fine])
    assert ([lost], []) == split_suspects(Closure.ROUTE, text, [lost])


def test_suspects_of_a_topic() -> None:
    """
    A refused topic names its routing key alone.
    """
    refused, fine = make_message(1, "a", routing_key="secret"), make_message(2, "b")
    text = "403 ACCESS_REFUSED - write access to topic 'secret' in exchange 'orders' in vhost '/' refused"

    assert ([refused], [[fine]]) == split_suspects(Closure.ROUTE, text, [refused, fine])


def test_suspects_are_halved() -> None:
    """
    A closure that names nobody is bisected until one is left.
    """
    wave = [make_message(at, str(at)) for at in range(1, 6)]

    assert ([], [wave[:2], wave[2:]]) == split_suspects(Closure.MESSAGE, "406 PRECONDITION_FAILED", wave)
    assert ([], [wave[:2], wave[2:]]) == split_suspects(Closure.ROUTE, "404 something else", wave)
    assert (wave[:1], []) == split_suspects(Closure.MESSAGE, "406 PRECONDITION_FAILED", wave[:1])
