from collections.abc import Callable, Sequence
from typing import Any

import pytest
from litestar.exceptions.http_exceptions import RequestEntityTooLarge

from orders.api.fast_path import MAX_BODY_BYTES, body_of, header_text, headers_of, idempotency_key
from orders.api.problems import BadRequest
from tests.orders.conftest import NEW, Api


async def test_both_ways_to_a_placement(api: Api) -> None:
    """
    The straight way of a placement and Litestar's own, which another spelling of the path takes, answer alike.
    """
    for content, type_ in ((b"{}", "application/json"), (b"{", "application/json"), (b"x", "text/plain"),
                           (b" " * ((1 << 20) + 1), "application/json")):  # fmt: skip
        answers = [
            await api.client.post(path, content=content, headers={"Content-Type": type_, "X-Request-ID": "same"})
            for path in ("/orders", "/orders/")
        ]
        assert answers[0].status_code == answers[1].status_code >= 400
        assert answers[0].content == answers[1].content
        assert {**answers[0].headers, "date": ""} == {**answers[1].headers, "date": ""}
    placed = [await api.client.post(path, json=NEW) for path in ("/orders", "/orders/")]
    assert [each.status_code for each in placed] == [201, 201]
    assert [list(each.headers) for each in placed] == [list(placed[0].headers)] * 2


def scope_of(*headers: tuple[bytes, bytes]) -> Any:
    return {"type": "http", "headers": list(headers)}


def receiver(messages: Sequence[dict[str, Any]]) -> Callable[[], Any]:
    left = iter(messages)

    async def receive() -> dict[str, Any]:
        return next(left)

    return receive


def piece(body: bytes, *, more: bool) -> dict[str, Any]:
    return {"type": "http.request", "body": body, "more_body": more}


def test_headers() -> None:
    """
    Of a repeated header the last counts; its bytes are Latin-1.
    """
    headers = headers_of(scope_of((b"a", b"1"), (b"b", b"\xe4"), (b"a", b"2")))

    assert headers == {b"a": b"2", b"b": b"\xe4"}
    assert (header_text(headers, b"b"), header_text(headers, b"c")) == ("ä", None)


async def test_a_body_in_pieces() -> None:
    """
    A body is whole however it arrives, up to its limit.
    """
    assert await body_of(receiver([piece(b"ab", more=True), piece(b"", more=True), piece(b"c", more=False)])) == b"abc"
    assert await body_of(receiver([{"type": "http.request"}])) == b""
    most = b"x" * MAX_BODY_BYTES
    assert await body_of(receiver([piece(most, more=False)])) == most


async def test_a_body_that_is_too_large() -> None:
    """
    A body is refused at the piece that exceeds the limit, before its end.
    """
    pieces = [piece(b"x" * MAX_BODY_BYTES, more=True), piece(b"x", more=True)]
    with pytest.raises(RequestEntityTooLarge):
        await body_of(receiver(pieces))


async def test_a_client_that_leaves_within_its_body() -> None:
    """
    A body that ends early is a bad request, not an order.
    """
    with pytest.raises(BadRequest) as refused:
        await body_of(receiver([piece(b"x", more=True), {"type": "http.disconnect"}]))
    assert refused.value.status == 400


@pytest.mark.parametrize("key", [b"k", b'"k"', b"~" * 255, b"!"])
def test_a_key_comes_as_it_was_sent(key: bytes) -> None:
    """
    A key is 1 to 255 visible ASCII characters; its quotes belong to it.
    """
    scope = scope_of((b"idempotency-key", key))
    assert idempotency_key(scope, headers_of(scope)) == key.decode()
    assert idempotency_key(scope_of(), {}) is None


@pytest.mark.parametrize(
    "keys", [[b""], [b"a b"], [b"\xe4"], [b"\x7f"], [b"k" * 256], [b"k", b"k"]], ids=lambda keys: repr(keys)[:20]
)
def test_malformed_keys(keys: Sequence[bytes]) -> None:
    """
    No key is guessed from a malformed or repeated one.
    """
    scope = scope_of(*((b"idempotency-key", key) for key in keys))
    with pytest.raises(BadRequest) as refused:
        idempotency_key(scope, headers_of(scope))
    assert refused.value.status == 400
