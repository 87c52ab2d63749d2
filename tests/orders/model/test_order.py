"""Which orders are valid."""

import msgspec
import pytest

from orders.model.errors import InvalidOrder
from orders.model.order import NewOrder

LINE = {"sku": "22423", "quantity": 2, "unit_price_minor": 150}


def new_order(**fields: object) -> NewOrder:
    return msgspec.convert({"customer_id": "17850", "currency": "GBP", "lines": [LINE], **fields}, NewOrder)


def line(**fields: object) -> list[dict[str, object]]:
    return [{**LINE, **fields}]


def test_total() -> None:
    """
    The total is the sum of quantity times unit price, in minor units.
    """
    assert new_order(lines=line() + line(quantity=3, unit_price_minor=7)).total_minor() == 321


def test_total_that_fits_no_column() -> None:
    """
    A total of more than 64 bits is refused, although each line is valid.
    """
    largest = line(quantity=1, unit_price_minor=2**63 - 1)
    assert new_order(lines=largest).total_minor() == 2**63 - 1
    with pytest.raises(InvalidOrder) as caught:
        new_order(lines=largest + line(quantity=1, unit_price_minor=1)).total_minor()
    assert caught.value.field == "lines"


@pytest.mark.parametrize(
    "fields",
    [
        {"customer_id": ""},
        {"customer_id": "x" * 65},
        {"customer_id": "a\0"},
        {"customer_id": "a\n"},
        {"reference": "x" * 201},
        {"reference": "a\u2028b"},
        {"currency": "XXX"},
        {"lines": []},
        {"lines": line() * 1001},
        {"lines": line(quantity=0)},
        {"lines": line(quantity=2**31)},
        {"lines": line(unit_price_minor=-1)},
        {"lines": line(unit_price_minor=2**63)},
        {"lines": line(sku="")},
        {"lines": line(colour="red")},
        {"colour": "red"},
    ],
    ids=lambda fields: str(fields)[:40],
)
def test_invalid_orders(fields: dict[str, object]) -> None:
    """
    What would not fit its column is refused before it gets to the database.
    """
    with pytest.raises(msgspec.ValidationError):
        new_order(**fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"customer_id": "x" * 64},
        {"reference": "BANK CHARGES"},
        {"reference": ""},
        {"reference": "x" * 200},
        {"lines": line() * 1000},
        {"lines": line(quantity=2**31 - 1, unit_price_minor=0)},
        {"lines": line(description="WHITE METAL LANTERN")},
    ],
    ids=lambda fields: str(fields)[:40],
)
def test_valid_orders(fields: dict[str, object]) -> None:
    """
    The limits themselves are valid.
    """
    assert new_order(**fields)
