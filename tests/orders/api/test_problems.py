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
        ("GET", "/orders/batch", {}, b"", 405, None),
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


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"\xef\xbb\xbf{}", "begins with a byte order mark (BOM) of UTF-8"),
        ("{}".encode("utf-16"), "begins with a byte order mark (BOM) of UTF-16"),
        (b"\x1f\x8b\x08\x00", "is encoded with gzip: send plain JSON"),
    ],
)
async def test_a_body_that_only_looks_like_noise(api: Api, body: bytes, reason: str) -> None:
    """
    A byte order mark and gzip are named as what they are.
    """
    assert reason in (await api.client.post("/orders", content=body, headers=JSON)).json()["detail"]


async def test_a_content_encoding_is_refused_with_those_that_are_not(api: Api) -> None:
    """
    The answer names the content coding of the body, and the one to use; a coding that changed nothing harms nothing.
    """
    refused = await api.client.post("/orders", content=b"\x0b", headers={**JSON, "Content-Encoding": "br"})
    taken = await api.client.post("/orders", json=NEW, headers={"Content-Encoding": "identity"})

    assert (refused.status_code, refused.headers["accept-encoding"], taken.status_code) == (415, "identity", 201)
    assert "encoded with br" in refused.json()["detail"]


async def test_all_wrong_parameters(api: Api) -> None:
    """
    A list names each parameter that is wrong.
    """
    answer = await api.client.get("/orders", params={"status": "gone", "limit": "0", "after": "x", "colour": "red"})

    assert {error["field"] for error in answer.json()["errors"]} == {"status", "limit", "after", "colour"}
    assert answer.json()["detail"].endswith("(3 more fields are wrong: see `errors`)")


async def test_many_wrong_fields(api: Api) -> None:
    """
    One answer names at most some tens of fields.
    """
    body = {**NEW, "lines": [{}] * 1000}
    answer = await api.client.post("/orders", json=body)

    assert 40 <= len(answer.json()["errors"]) <= 51


@pytest.mark.parametrize("body", ['{{"{}": 1}}', '{{"customer_id": "c", "currency": "GBP", "lines": [{{"{}": 1}}]}}'])
async def test_an_unknown_field_with_a_long_name(api: Api, body: str) -> None:
    """
    A field name of 900 kB comes back as its first hundred characters, with its path.
    """
    problem = (await api.client.post("/orders", content=body.format("n" * 900_000), headers=JSON)).json()

    fields = [each["field"] for each in problem["errors"]]
    assert ("lines[0]." if "lines" in body else "") + "n" * 100 + "..." in fields
    assert len(str(problem)) < 2_000
