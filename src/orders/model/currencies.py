"""The currency codes that an order may have: those of ISO 4217's list one (currencies and funds) that are money.

Source: the list that SIX publishes for ISO (www.six-group.com, "Data Standards", list one). `make currencies` compares
this module with the newest list.
"""

from datetime import date
from typing import Literal

# The publication date of the list that Currency was last compared with.
LIST_DATE = date(2026, 1, 1)

# No longer on the list: ANG became XCG in 2025, BGN became EUR in 2026. They stay in Currency, since stored orders
# have them and clients may still send them.
WITHDRAWN = frozenset({"ANG", "BGN"})

# On the list with a minor unit, but units of account: no payment is made in them.
UNITS_OF_ACCOUNT = frozenset({"UYW", "XAD"})

Currency = Literal[
    "AED", "AFN", "ALL", "AMD", "ANG", "AOA", "ARS", "AUD", "AWG", "AZN", "BAM", "BBD", "BDT", "BGN", "BHD", "BIF",
    "BMD", "BND", "BOB", "BRL", "BSD", "BTN", "BWP", "BYN", "BZD", "CAD", "CDF", "CHF", "CLP", "CNY", "COP", "CRC",
    "CUP", "CVE", "CZK", "DJF", "DKK", "DOP", "DZD", "EGP", "ERN", "ETB", "EUR", "FJD", "FKP", "GBP", "GEL", "GHS",
    "GIP", "GMD", "GNF", "GTQ", "GYD", "HKD", "HNL", "HTG", "HUF", "IDR", "ILS", "INR", "IQD", "IRR", "ISK", "JMD",
    "JOD", "JPY", "KES", "KGS", "KHR", "KMF", "KPW", "KRW", "KWD", "KYD", "KZT", "LAK", "LBP", "LKR", "LRD", "LSL",
    "LYD", "MAD", "MDL", "MGA", "MKD", "MMK", "MNT", "MOP", "MRU", "MUR", "MVR", "MWK", "MXN", "MYR", "MZN", "NAD",
    "NGN", "NIO", "NOK", "NPR", "NZD", "OMR", "PAB", "PEN", "PGK", "PHP", "PKR", "PLN", "PYG", "QAR", "RON", "RSD",
    "RUB", "RWF", "SAR", "SBD", "SCR", "SDG", "SEK", "SGD", "SHP", "SLE", "SOS", "SRD", "SSP", "STN", "SVC", "SYP",
    "SZL", "THB", "TJS", "TMT", "TND", "TOP", "TRY", "TTD", "TWD", "TZS", "UAH", "UGX", "USD", "UYU", "UZS", "VED",
    "VES", "VND", "VUV", "WST", "XAF", "XCD", "XCG", "XOF", "XPF", "YER", "ZAR", "ZMW", "ZWG",
]  # fmt: skip

# The decimal digits of the minor unit, by the same list, of each currency that has not two.
_MINOR_DIGITS = {
    **dict.fromkeys(
        ("BIF", "CLP", "DJF", "GNF", "ISK", "JPY", "KMF", "KRW", "PYG", "RWF", "UGX", "VND", "VUV", "XAF", "XOF",
         "XPF"), 0
    ),
    **dict.fromkeys(("BHD", "IQD", "JOD", "KWD", "LYD", "OMR", "TND"), 3),
}  # fmt: skip


def minor_digits(currency: str) -> int:
    """Return the number of decimal digits of a currency's minor unit: 2 for GBP, 0 for JPY."""
    return _MINOR_DIGITS.get(currency, 2)


def amount_text(minor: int, currency: str) -> str:
    """Return an amount in minor units as people write it: `1,234.50 GBP`, `1,234 JPY`."""
    digits = minor_digits(currency)
    whole, fraction = divmod(minor, 10**digits)
    return f"{whole:,}{f'.{fraction:0{digits}}' if digits else ''} {currency}"
