"""Compare the currency codes of an order with the newest list of ISO 4217: `make currencies`.

The package `iso4217` carries the list as SIX publishes it. pip installs it into a temporary folder for this comparison
alone. Prints one line that says what to do; exits 0 if that is nothing, 1 if there is something, 2 without the package.
"""

import subprocess
import sys
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple, get_args
from xml.etree import ElementTree

from orders.model.currencies import LIST_DATE, UNITS_OF_ACCOUNT, WITHDRAWN, Currency

MAX_AGE_DAYS = 366
PIP = (sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps")


class IsoList(NamedTuple):
    """What a list of ISO 4217 says: its publication date, and the codes that are money."""

    published: date
    codes: frozenset[str]


def parse(xml: bytes) -> IsoList:
    """Read the XML of list one; funds, metals and test codes are no money."""
    root = ElementTree.fromstring(xml)
    codes = {
        code
        for entry in root.iter("CcyNtry")
        if (code := entry.findtext("Ccy"))
        and entry.findtext("CcyMnrUnts") != "N.A."
        and (name := entry.find("CcyNm")) is not None
        and name.get("IsFund", "").lower() != "true"
    }
    return IsoList(date.fromisoformat(root.attrib["Pblshd"]), frozenset(codes) - UNITS_OF_ACCOUNT)


def advice(newest: IsoList, today: date) -> str:
    """Say in one line what to do about src/orders/model/currencies.py; an empty text means nothing."""
    ours = frozenset(get_args(Currency))
    added, gone = sorted(newest.codes - ours), sorted(ours - newest.codes - WITHDRAWN)
    if added or gone:
        steps = ((added, "Currency"), (gone, "WITHDRAWN"))
        changes = ", ".join(f"add {', '.join(codes)} to {name}" for codes, name in steps if codes)
        return f"{changes}, and set LIST_DATE to {newest.published}"
    if newest.published > LIST_DATE:
        return f"the list of {newest.published} has the same codes: set LIST_DATE to it"
    if (today - LIST_DATE).days > MAX_AGE_DAYS:
        return f"the list of {LIST_DATE} is over a year old and iso4217 has no newer one: look at www.six-group.com"
    return ""


def main() -> int:
    """Install the package, compare, and print the line."""
    with TemporaryDirectory() as folder:
        if subprocess.run([*PIP, "--target", folder, "iso4217"], check=False).returncode:
            age = (date.today() - LIST_DATE).days  # noqa: DTZ011  # a day more or less does not matter
            print(f"make currencies: pip could not install iso4217; the list in use is {age} days old")
            return 2
        newest = parse(Path(folder, "iso4217", "table.xml").read_bytes())
    to_do = advice(newest, date.today())  # noqa: DTZ011
    print(f"make currencies: {to_do or f'nothing to do: the list of {LIST_DATE} is the newest, and the codes agree'}")
    return 1 if to_do else 0


if __name__ == "__main__":
    sys.exit(main())
