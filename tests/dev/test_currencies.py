"""`make currencies` says in one line what differs between our currency codes and a list of ISO 4217."""

from datetime import date, timedelta
from typing import get_args

import pytest

from dev.currencies import IsoList, advice, parse
from orders.model.currencies import LIST_DATE, UNITS_OF_ACCOUNT, WITHDRAWN, Currency

CODES = frozenset(get_args(Currency)) - WITHDRAWN


def test_a_list_is_read_without_what_is_no_money() -> None:
    """
    Countries without a currency, funds, metals and units of account are left out.
    """
    entry = "<CcyNtry><CcyNm{}>name</CcyNm>{}<CcyMnrUnts>{}</CcyMnrUnts></CcyNtry>".format
    entries = [
        entry("", "<Ccy>EUR</Ccy>", "2"), entry("", "<Ccy>JPY</Ccy>", "0"), entry("", "", "2"),
        entry(' IsFund="true"', "<Ccy>CHE</Ccy>", "2"), entry("", "<Ccy>XAU</Ccy>", "N.A."),
        entry("", "<Ccy>XAD</Ccy>", "2"),
    ]  # fmt: skip
    xml = f'<ISO_4217 Pblshd="2026-01-01"><CcyTbl>{"".join(entries)}</CcyTbl></ISO_4217>'

    assert parse(xml.encode()) == IsoList(date(2026, 1, 1), frozenset({"EUR", "JPY"}))


@pytest.mark.parametrize(
    ("newest", "age_days", "words"),
    [
        (IsoList(LIST_DATE, CODES), 100, ""),
        (IsoList(LIST_DATE, CODES), 400, "over a year old"),
        (IsoList(LIST_DATE + timedelta(30), CODES), 100, "set LIST_DATE"),
        (IsoList(LIST_DATE, CODES | {"ZZZ"}), 100, "add ZZZ to Currency, and set"),
        (IsoList(LIST_DATE, CODES - {"EUR"} | {"ZZZ"}), 100, "add ZZZ to Currency, add EUR to WITHDRAWN, and set"),
    ],
)
def test_advice_is_one_line(newest: IsoList, age_days: int, words: str) -> None:
    """
    Each way to differ has its own advice, and none where nothing differs.
    """
    said = advice(newest, LIST_DATE + timedelta(age_days))

    assert bool(said) == bool(words)
    assert words in said
    assert "\n" not in said


def test_withdrawn_codes_are_still_taken() -> None:
    """
    Stored orders have them; no unit of account is money.
    """
    assert frozenset(get_args(Currency)) >= WITHDRAWN
    assert not UNITS_OF_ACCOUNT & frozenset(get_args(Currency))
