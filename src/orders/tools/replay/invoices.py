"""Read orders from a CSV file of invoices, plain or gzip, in any size.

The rule: an invoice is refused as a whole if it is a cancellation, or if any of its lines has a quantity or a price
that is not above zero. The lines of one invoice stand together in the file, and it is complete when the next one
begins, so memory holds one invoice at a time. Rows without any text are skipped: spreadsheets leave them at the end.
"""

import csv
import gzip
import re
import sqlite3
import zlib
from collections.abc import Iterable, Iterator
from contextlib import closing
from decimal import Decimal
from enum import Enum
from hashlib import sha256
from pathlib import Path
from typing import IO, cast

import msgspec

from orders.model.currencies import Currency, minor_digits
from orders.model.order import Line, NewOrder

COLUMNS = ["InvoiceNo", "StockCode", "Description", "Quantity", "InvoiceDate", "UnitPrice", "CustomerID", "Country"]
CURRENCY: Currency = "GBP"  # of the bundled file
GUEST = "guest"
MAX_LINES = 1000  # of one order; memory holds no more of a longer invoice
MAX_LINE_BYTES = 1 << 20

_GZIP_MAGIC = b"\x1f\x8b"

# Bounded, so that each is exact as a Decimal of the default 28 digits; ASCII digits only, unlike int() and Decimal().
_QUANTITY = re.compile(r"-?[0-9]{1,18}").fullmatch
_PRICE = re.compile(r"-?[0-9]{1,15}(\.[0-9]{1,10})?").fullmatch
# It becomes a part of an Idempotency-Key, which takes these characters and no others.
_NUMBER = re.compile(r"[\x21-\x7e]{1,64}").fullmatch


class MalformedFile(Exception):
    """The file is malformed; `line` is the first bad line, counted from 1."""

    def __init__(self, line: int, what: str) -> None:
        super().__init__(f"line {line}: {what}")
        self.line = line


class RefusalReason(Enum):
    """Why an invoice is refused: the first reason in this order that applies."""

    CANCELLATION = "it is a cancellation"
    QUANTITY = "a quantity is not above zero"
    PRICE = "a price is not above zero"
    FRACTION = "a price is not a whole number of minor units"
    CUSTOMERS = "its lines have several customers"
    LENGTH = f"it has more than {MAX_LINES} lines"


class AcceptedInvoice(msgspec.Struct, frozen=True):
    """An invoice to place."""

    number: str
    first_line: int
    order: NewOrder


class RefusedInvoice(msgspec.Struct, frozen=True):
    """An invoice that is not placed, and the first line with the reason."""

    number: str
    first_line: int
    line: int
    reason: RefusalReason


Invoice = AcceptedInvoice | RefusedInvoice


class Survey(msgspec.Struct, frozen=True):
    """The counts of a well-formed file, which was read to its end."""

    fingerprint: str  # SHA-256 of the uncompressed text, in hexadecimal
    lines: int
    accepted: int
    refused: dict[RefusalReason, int]
    examples: dict[RefusalReason, RefusedInvoice]
    blank: int = 0  # rows without any text, which are skipped
    currency: Currency = CURRENCY

    @property
    def invoices(self) -> int:
        """The number of invoices, accepted or refused."""
        return self.accepted + sum(self.refused.values())


def survey(path: Path, currency: Currency = CURRENCY) -> Survey:
    """Read the whole file and count its invoices; raise MalformedFile if any of it is malformed."""
    digest = sha256()
    lines = accepted = blank = 0
    refused: dict[RefusalReason, int] = {}
    examples: dict[RefusalReason, RefusedInvoice] = {}

    def counted(raw_lines: Iterable[bytes]) -> Iterator[bytes]:
        nonlocal lines
        for raw in raw_lines:
            digest.update(raw)
            lines += 1
            yield raw

    def without_blank(rows: Iterable[tuple[int, _Row | None]]) -> Iterator[tuple[int, _Row]]:
        nonlocal blank
        for line, row in rows:
            if row is None:
                blank += 1
            else:
                yield line, row

    # The numbers seen so far are in a temporary database: memory would grow with the number of invoices.
    with path.open("rb") as file, closing(sqlite3.connect("")) as seen:
        seen.execute("CREATE TABLE seen (number TEXT PRIMARY KEY, line INTEGER) WITHOUT ROWID")
        for invoice in _invoices(without_blank(_rows(_texts(counted(_raw_lines(file, path.name))))), currency):
            try:
                seen.execute("INSERT INTO seen VALUES (?, ?)", (invoice.number, invoice.first_line))
            except sqlite3.IntegrityError:
                ((earlier,),) = seen.execute("SELECT line FROM seen WHERE number = ?", (invoice.number,))
                raise MalformedFile(
                    invoice.first_line,
                    f"invoice {invoice.number} began on line {earlier} and comes again after others; "
                    "the lines of an invoice have to stand together",
                ) from None
            match invoice:
                case AcceptedInvoice():
                    accepted += 1
                case RefusedInvoice(reason=reason):
                    refused[reason] = refused.get(reason, 0) + 1
                    examples.setdefault(reason, invoice)
    return Survey(digest.hexdigest(), lines - 1, accepted, refused, examples, blank, currency)


def read(path: Path, currency: Currency = CURRENCY) -> Iterator[Invoice]:
    """Yield the invoices in the order of the file; raise MalformedFile at the first malformed line."""
    with path.open("rb") as file:
        rows = _rows(_texts(_raw_lines(file, path.name)))
        yield from _invoices(((line, row) for line, row in rows if row is not None), currency)


class _Row(msgspec.Struct, frozen=True):
    """A line of an invoice whose fields are well-formed."""

    number: str
    sku: str
    description: str
    quantity: int
    price: Decimal
    customer: str


def _raw_lines(file: IO[bytes], name: str) -> Iterator[bytes]:
    """Yield the lines as bytes, uncompressed if the content (not the name) is gzip."""
    packed = file.read(2) == _GZIP_MAGIC
    file.seek(0)
    if name.endswith(".gz") and not packed:
        raise MalformedFile(1, "the file is not in gzip format, as its name says")
    # GzipFile is no IO to the type checker, but it reads like one.
    source = cast("IO[bytes]", gzip.GzipFile(fileobj=file)) if packed else file
    number = 1
    try:
        while raw := source.readline(MAX_LINE_BYTES + 1):
            if len(raw) > MAX_LINE_BYTES:
                raise MalformedFile(number, f"the line is longer than {MAX_LINE_BYTES} bytes")
            yield raw
            number += 1
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise MalformedFile(number, f"the gzip stream is broken here: {error}") from None


def _texts(raw_lines: Iterable[bytes]) -> Iterator[str]:
    for number, raw in enumerate(raw_lines, 1):
        try:
            # Spreadsheets write a byte order mark before the header.
            yield raw.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise MalformedFile(number, f"byte {error.start + 1} of the line is not UTF-8") from None


def _rows(texts: Iterator[str]) -> Iterator[tuple[int, _Row | None]]:
    """Yield each row after the header, with the number of its first line; None for one without any text."""
    # Strict: the csv module raises where it would otherwise guess, as at an unclosed quotation.
    reader = csv.reader(texts, strict=True)
    while True:
        line = reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            if line == 1:
                raise MalformedFile(1, "the file is empty") from None
            return
        except csv.Error as error:
            raise MalformedFile(line, f"the row that begins here is not CSV: {error}") from None
        if line == 1:
            if fields != COLUMNS:
                raise MalformedFile(1, f"the header has to be {','.join(COLUMNS)}")
        else:
            yield line, _row(line, fields) if any(field.strip() for field in fields) else None


def _row(line: int, fields: list[str]) -> _Row:
    if len(fields) != len(COLUMNS):
        raise MalformedFile(line, f"there are {len(fields)} columns where the header has {len(COLUMNS)}")
    number, sku, description, quantity, _, price, customer, _ = fields
    if not _NUMBER(number):
        raise MalformedFile(line, f"InvoiceNo is {_shown(number)}, and not 1 to 64 visible ASCII characters")
    if not _QUANTITY(quantity):
        raise MalformedFile(line, f"Quantity is {_shown(quantity)}, and not a whole number")
    if not _PRICE(price):
        raise MalformedFile(line, f"UnitPrice is {_shown(price)}, and not a decimal number")
    return _Row(number, sku, description, int(quantity), Decimal(price), customer)


def _shown(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:40] + "…")


class _OpenInvoice:
    """An invoice of which more lines may follow."""

    def __init__(self, number: str, first_line: int, currency: Currency) -> None:
        self.number = number
        self.currency = currency
        self.first_line = first_line
        self._customer: str | None = None
        self._lines: list[Line] = []
        self._objections: dict[RefusalReason, int] = (
            {RefusalReason.CANCELLATION: first_line} if number.startswith("C") else {}
        )

    def add(self, line: int, row: _Row) -> None:
        """Add a line; of one that is a reason to refuse, only its number is kept."""
        minor = row.price.scaleb(minor_digits(self.currency))
        if self._customer is None:
            self._customer = row.customer
        if row.quantity <= 0:
            self._objections.setdefault(RefusalReason.QUANTITY, line)
        elif row.price <= 0:
            self._objections.setdefault(RefusalReason.PRICE, line)
        elif minor != minor.to_integral_value():
            self._objections.setdefault(RefusalReason.FRACTION, line)
        elif row.customer != self._customer:
            self._objections.setdefault(RefusalReason.CUSTOMERS, line)
        elif len(self._lines) == MAX_LINES:
            self._objections.setdefault(RefusalReason.LENGTH, line)
        else:
            self._lines.append(
                Line(
                    sku=row.sku,
                    quantity=row.quantity,
                    unit_price_minor=int(minor),
                    description=row.description or None,
                )
            )

    def close(self) -> Invoice:
        """Accept or refuse the complete invoice."""
        for reason in RefusalReason:
            if reason in self._objections:
                return RefusedInvoice(self.number, self.first_line, self._objections[reason], reason)
        order = NewOrder(
            customer_id=self._customer or GUEST,
            currency=self.currency,
            lines=self._lines,
            reference=self.number,
        )
        return AcceptedInvoice(self.number, self.first_line, order)


def _invoices(rows: Iterator[tuple[int, _Row]], currency: Currency) -> Iterator[Invoice]:
    """Yield each invoice when it is complete: when the next one begins, or at the end."""
    now: _OpenInvoice | None = None
    for line, row in rows:
        if now is None or now.number != row.number:
            if now is not None:
                yield now.close()
            now = _OpenInvoice(row.number, line, currency)
        now.add(line, row)
    if now is not None:
        yield now.close()
