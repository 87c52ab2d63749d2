import pytest

from tests.orders.conftest import NEW, Api

JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize(
    ("method", "path", "headers", "body", "status", "field"),
    [
        ("POST", "/orders", JSON, b"", 400, None),
        ("POST", "/orders", JSON, b"null", 400, None),
        ("POST", "/orders", JSON, b"{", 400, None),
        ("POST", "/orders", JSON, b'{"customer_id": "\xff"}', 400, None),
        ("POST", "/orders", JSON, b"[" * 100_000, 400, None),
        ("POST", "/orders", JSON, b'{"customer_id": 1}', 400, "customer_id"),
        ("POST", "/orders", JSON, b'{"customer_id": "a", "currency": "XXX"}', 400, "currency"),
        ("POST", "/orders", JSON, b'{"customer_id": "a", "currency": "GBP", "lines": []}', 400, "lines"),
        ("POST", "/orders", JSON, b'{"customer_id": "a\\u0000"}', 400, "customer_id"),
        ("POST", "/orders", JSON, b'{"price": 1}', 400, "price"),
        ("POST", "/orders", {"Content-Type": "text/plain"}, b"{}", 415, None),
        ("POST", "/orders", {}, b"{}", 415, None),
        ("POST", "/orders", {**JSON, "Idempotency-Key": "a b"}, b"{}", 400, None),
        ("POST", "/orders", JSON, b"x" * (1 << 20) + b"x", 413, None),
        ("POST", "/order/get/x", {}, b"", 405, None),
        ("GET", "/nothing", {}, b"", 404, None),
        ("GET", "/orders/x", {}, b"", 404, None),
        ("DELETE", "/orders", {}, b"", 405, None),
    ],
)
async def test_every_error_is_a_problem(
    api: Api, method: str, path: str, headers: dict[str, str], body: bytes, status: int, field: str | None
) -> None:
    """
    Bad input gets a 4xx problem document that names the field and the request.
    """
    answer = await api.client.request(method, path, headers={**headers, "X-Request-ID": "r-1"}, content=body)
    problem = answer.json()

    assert (status, "application/problem+json") == (answer.status_code, answer.headers["content-type"])
    assert {"type": "about:blank", "status": status, "request_id": "r-1"}.items() <= problem.items()
    assert problem["title"]
    assert problem["detail"]
    assert field == (problem["errors"][0]["field"] if "errors" in problem else None)


async def test_a_bug_is_a_problem_too(
    api: Api, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """
    What nobody foresaw is a 500 problem without details; the log has them.
    """

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("secret")

    monkeypatch.setattr("orders.api.fast_path.placement_of", broken)
    answer = await api.client.post("/orders", json=NEW)

    assert (answer.status_code, answer.headers["content-type"]) == (500, "application/problem+json")
    assert "secret" not in answer.text
    assert "secret" in caplog.text


@pytest.mark.parametrize(
    ("quantity", "status"), [("2.0", 201), ("2e0", 201), ("2.5", 400), ("1e300", 400), ("18014398509481984.0", 400)]
)
async def test_integers_with_a_point(api: Api, quantity: str, status: int) -> None:
    """
    A number that is an integer is one however it is written, as JSON Schema has it.
    """
    body = f'{{"customer_id":"c","currency":"GBP","lines":[{{"sku":"A","quantity":{quantity},"unit_price_minor":1}}]}}'
    answer = await api.client.post("/orders", content=body, headers=JSON)

    assert status == answer.status_code
    assert (2 if status == 201 else None) == answer.json().get("total_minor")
