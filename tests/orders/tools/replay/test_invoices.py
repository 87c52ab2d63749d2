"""The rule that decides what is placed, and every way in which a file can be wrong."""

import csv
import gzip
import io
import tracemalloc
from collections.abc import Iterable, Sequence
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orders.model.currencies import Currency
from orders.model.order import Line
from orders.tools.replay.invoices import (
    COLUMNS,
    MAX_LINE_BYTES,
    AcceptedInvoice,
    MalformedFile,
    RefusalReason,
    RefusedInvoice,
    read,
    survey,
)

BUNDLED = Path(__file__).resolve().parents[4] / "examples" / "online-retail-2010-12.csv.gz"
HEADER = ",".join(COLUMNS)

same_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def row(number: str = "1", *, quantity: object = 1, price: object = "2.55", customer: object = "17850") -> list[str]:
    return [number, "85123A", "HOLDER", str(quantity), "01/12/2010 08:26", str(price), str(customer), "United Kingdom"]


def write(folder: Path, rows: Iterable[Sequence[str]], header: Sequence[str] = COLUMNS) -> Path:
    path = folder / "invoices.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *rows])
    return path


def written(folder: Path, content: str | bytes, name: str = "invoices.csv") -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_bundled_file() -> None:
    """
    Of the bundled invoices 1,449 are accepted, with up to 675 lines, and 443 refused.
    """
    found = survey(BUNDLED)
    invoices = list(read(BUNDLED))

    assert found.lines == 39_522
    assert (found.invoices, found.accepted) == (1_892, 1_449)
    assert found.refused == {RefusalReason.CANCELLATION: 299, RefusalReason.QUANTITY: 69, RefusalReason.PRICE: 75}
    assert found.examples[RefusalReason.CANCELLATION] == RefusedInvoice("C536379", 143, 143, RefusalReason.CANCELLATION)
    accepted = [each for each in invoices if isinstance(each, AcceptedInvoice)]
    assert (len(invoices), len(accepted)) == (1_892, 1_449)
    assert max(len(each.order.lines) for each in accepted) == 675


def test_bundled_invoice() -> None:
    """
    An order says what its invoice says: GBP in pence, the stock code, the number as its reference.
    """
    first = next(read(BUNDLED))

    assert isinstance(first, AcceptedInvoice)
    assert (first.number, first.first_line) == ("536365", 2)
    assert (first.order.customer_id, first.order.currency, first.order.reference) == ("17850", "GBP", "536365")
    assert len(first.order.lines) == 7
    assert first.order.lines[0] == Line("85123A", 6, 255, "WHITE HANGING HEART T-LIGHT HOLDER")


def test_guest(tmp_path: Path) -> None:
    """
    An invoice without a customer is placed for the guest.
    """
    (invoice,) = read(write(tmp_path, [row(customer="")]))

    assert isinstance(invoice, AcceptedInvoice)
    assert invoice.order.customer_id == "guest"


@pytest.mark.parametrize(
    ("rows", "reason", "line"),
    [
        ([row("C1", quantity=-1)], RefusalReason.CANCELLATION, 2),
        ([row("C1")], RefusalReason.CANCELLATION, 2),
        ([row(), row(quantity=0)], RefusalReason.QUANTITY, 3),
        ([row(price=0), row(quantity=-1)], RefusalReason.QUANTITY, 3),
        ([row(), row(), row(price="-0.01")], RefusalReason.PRICE, 4),
        ([row(price="0.00")], RefusalReason.PRICE, 2),
        ([row(), row(price="0.001")], RefusalReason.FRACTION, 3),
        ([row(), row(customer="2")], RefusalReason.CUSTOMERS, 3),
        ([row()] * 1001, RefusalReason.LENGTH, 1002),
        ([row()] * 1500 + [row(price=0)], RefusalReason.PRICE, 1502),
    ],
)
def test_refused_whole(tmp_path: Path, rows: list[list[str]], reason: RefusalReason, line: int) -> None:
    """
    One line is enough to refuse its invoice, and nobody else's.
    """
    path = write(tmp_path, [*rows, row("2")])

    assert next(read(path)) == RefusedInvoice(rows[0][0], 2, line, reason)
    assert survey(path).accepted == 1


def test_thousand_lines(tmp_path: Path) -> None:
    """
    As many lines as an order may have are accepted.
    """
    (invoice,) = read(write(tmp_path, [row()] * 1000))

    assert isinstance(invoice, AcceptedInvoice)
    assert len(invoice.order.lines) == 1000


MALFORMED = [
    ("", 1, "the file is empty"),
    ("a,b\n", 1, "the header has to be InvoiceNo,"),
    (HEADER.lower() + "\n", 1, "the header has to be InvoiceNo,"),
    (f"{HEADER},More\n", 1, "the header has to be InvoiceNo,"),
    (f"{HEADER}\n1,2,3\n", 2, "there are 3 columns where the header has 8"),
    (f"{HEADER}\n1,S,D,1,,1,,UK\n\nx\n", 4, "there are 1 columns"),
    (f"{HEADER}\n1,S,D,1,,1,,UK,\n", 2, "there are 9 columns"),
    (f"{HEADER}\n1,S,D,six,,1,,UK\n", 2, "Quantity is 'six', and not a whole number"),
    (f"{HEADER}\n1,S,D,1.0,,1,,UK\n", 2, "Quantity is '1.0'"),
    (f"{HEADER}\n1,S,D,٣,,1,,UK\n", 2, "Quantity is '٣'"),
    (f"{HEADER}\n1,S,D,,,1,,UK\n", 2, "Quantity is ''"),
    (f"{HEADER}\n1,S,D,1,,1,,UK\n1,S,D,1,,£2,,UK\n", 3, "UnitPrice is '£2', and not a decimal number"),
    (f"{HEADER}\n1,S,D,1,,1e3,,UK\n", 2, "UnitPrice is '1e3'"),
    (f"{HEADER}\n1,S,D,1,,NaN,,UK\n", 2, "UnitPrice is 'NaN'"),
    (f"{HEADER}\n1,S,D,1,,{'9' * 5000},,UK\n", 2, f"UnitPrice is '{'9' * 40}…'"),
    (f"{HEADER}\n,S,D,1,,1,,UK\n", 2, "InvoiceNo is ''"),
    (f"{HEADER}\nno 1,S,D,1,,1,,UK\n", 2, "InvoiceNo is 'no 1'"),
    (f'{HEADER}\n1,S,D,1,,1,,UK\n2,S,"D,1,,1,,UK\n3,S,D,1,,1,,UK\n', 3, "is not CSV: unexpected end of data"),
    (f'{HEADER}\n1,S,"D"D,1,,1,,UK\n', 2, "is not CSV"),
    (f'{HEADER}\n1,S,"' + "D" * 200_000 + '",1,,1,,UK\n', 2, "is not CSV: field larger than field limit"),
    (f'{HEADER}\n1,S,"two\nlines",1,,1,,UK\n2,S,D,x,,1,,UK\n', 4, "Quantity is 'x'"),
    (HEADER.encode() + b"\n1,S,\xa3,1,,1,,UK\n", 2, "byte 5 of the line is not UTF-8"),
    (HEADER.encode("utf-16"), 1, "byte 1 of the line is not UTF-8"),
    (HEADER.encode() + b"\n" + b"x" * (MAX_LINE_BYTES + 1), 2, "the line is longer than"),
    (
        f"{HEADER}\n1,S,D,1,,1,,UK\n2,S,D,1,,1,,UK\n1,S,D,1,,1,,UK\n",
        4,
        "invoice 1 began on line 2 and comes again after others",
    ),
]


@pytest.mark.parametrize(("content", "line", "what"), MALFORMED, ids=range(len(MALFORMED)))
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
def test_malformed(tmp_path: Path, content: str | bytes, line: int, what: str, packed: bool) -> None:
    """
    What is wrong is said, with the number of its line.
    """
    data = content if isinstance(content, bytes) else content.encode()
    path = written(tmp_path, gzip.compress(data) if packed else data)

    with pytest.raises(MalformedFile) as raised:
        survey(path)

    assert raised.value.line == line
    assert f"line {line}: " in str(raised.value)
    assert what in str(raised.value)


def broken(packed: bytes) -> list[tuple[str, bytes]]:
    half = len(packed) // 2
    return [
        ("cut off", packed[:half]),
        ("cut in its header", packed[:5]),
        ("changed", packed[:half] + bytes([packed[half] ^ 0xFF]) + packed[half + 1 :]),
        ("checksum", packed[:-8] + b"\0" * 8),
        ("followed by something else", packed + b"no gzip"),
    ]


@pytest.mark.parametrize(("how", "data"), broken(BUNDLED.read_bytes()))
def test_broken_gzip(tmp_path: Path, how: str, data: bytes) -> None:
    """
    A gzip stream that is broken is malformed, wherever it breaks.
    """
    with pytest.raises(MalformedFile, match=r"^line \d+: "):
        survey(written(tmp_path, data, "invoices.csv.gz"))


def test_named_gzip(tmp_path: Path) -> None:
    """
    A file that is called gzip and is none is not taken for text.
    """
    with pytest.raises(MalformedFile, match="not in gzip format"):
        survey(written(tmp_path, f"{HEADER}\n", "invoices.csv.gz"))


def test_packing_does_not_matter(tmp_path: Path) -> None:
    """
    The same text is the same file, packed or not.
    """
    text = gzip.decompress(BUNDLED.read_bytes())

    assert survey(written(tmp_path, text)) == survey(BUNDLED)


def test_spreadsheet_file(tmp_path: Path) -> None:
    """
    A byte order mark, CRLF and quotations with line breaks are read as what they mean.
    """
    content = "\ufeff" + f'{HEADER}\r\n1,S,"TWO\r\nLINES, ""QUOTED""",1,,1,,UK\r\n2,S,,1,,1,,UK'
    first, second = read(written(tmp_path, content))

    assert isinstance(first, AcceptedInvoice)
    assert first.order.lines[0].description == 'TWO\r\nLINES, "QUOTED"'
    assert isinstance(second, AcceptedInvoice)
    assert (second.first_line, second.order.lines[0].description) == (4, None)


def test_no_invoices(tmp_path: Path) -> None:
    """
    A header alone is a file of no invoices.
    """
    assert survey(write(tmp_path, [])).invoices == 0


@same_folder
@given(pence=st.integers(1, 10**15), zeros=st.integers(0, 5))
def test_prices_are_exact(tmp_path: Path, pence: int, zeros: int) -> None:
    """
    Every price of whole pence is placed as exactly these pence.
    """
    price = f"{pence // 100}.{pence % 100:02}{'0' * zeros}"
    (invoice,) = read(write(tmp_path, [row(price=price)]))

    assert isinstance(invoice, AcceptedInvoice)
    assert invoice.order.lines[0].unit_price_minor == pence


lines = st.tuples(st.integers(-2, 5), st.decimals(-1, 3, places=2))


@same_folder
@given(st.lists(st.tuples(st.booleans(), st.lists(lines, min_size=1, max_size=4)), max_size=6))
def test_rule(tmp_path: Path, invoices: list[tuple[bool, list[tuple[int, Decimal]]]]) -> None:
    """
    Accepted are exactly the invoices that are no cancellations and have nothing at or below zero.
    """
    numbered = [(f"{'C' if cancels else ''}{n}", rows) for n, (cancels, rows) in enumerate(invoices)]
    path = write(tmp_path, (row(n, quantity=quantity, price=price) for n, rows in numbered for quantity, price in rows))

    placed = [each for each in read(path) if isinstance(each, AcceptedInvoice)]

    wanted = {
        n: [(quantity, int(price * 100)) for quantity, price in rows]
        for n, rows in numbered
        if not n.startswith("C") and all(quantity > 0 and price > 0 for quantity, price in rows)
    }
    assert {p.number: [(li.quantity, li.unit_price_minor) for li in p.order.lines] for p in placed} == wanted
    found = survey(path)
    assert (found.accepted, found.invoices) == (len(wanted), len(invoices))


text = st.text() | st.just(HEADER)
csv_like = st.lists(st.lists(text, max_size=9), max_size=5).map(lambda rows: csv_text([COLUMNS, *rows]))


def csv_text(rows: Iterable[Sequence[str]]) -> bytes:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(rows)
    return out.getvalue().encode("utf-8", "surrogatepass")


@same_folder
@given(st.binary() | csv_like | csv_like.map(gzip.compress) | st.binary().map(lambda tail: b"\x1f\x8b" + tail))
def test_any_bytes(tmp_path: Path, data: bytes) -> None:
    """
    Whatever is in a file, it is read or it is malformed.
    """
    path = written(tmp_path, data)
    try:
        found = survey(path)
    except MalformedFile as error:
        assert 1 <= error.line <= data.count(b"\n") + 1 or data[:2] == b"\x1f\x8b"  # noqa: PT017 - either will do
    else:
        assert len(list(read(path))) == found.invoices


def test_memory(tmp_path: Path) -> None:
    """
    Ten times as many invoices take no more memory.
    """

    def peak(invoices: int) -> int:
        path = write(tmp_path, (row(str(n)) for n in range(invoices)))
        tracemalloc.start()
        try:
            assert survey(path).accepted == sum(1 for _ in read(path)) == invoices
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(100)
    assert peak(10_000) < 1.5 * peak(1_000)


def test_blank_rows(tmp_path: Path) -> None:
    """
    Rows without any text, as spreadsheets leave them at the end, are skipped and counted, wherever they stand.
    """
    blank = [[""] * 8, [" "] * 8, []]
    path = write(tmp_path, [row(), *blank, row(), row("2"), *([[""] * 8] * 1000)])

    found = survey(path)

    assert (found.accepted, found.blank, found.refused) == (2, 1003, {})
    first, _ = read(path)
    assert isinstance(first, AcceptedInvoice)
    assert len(first.order.lines) == 2


@pytest.mark.parametrize(
    ("currency", "price", "minor"), [("EUR", "2.55", 255), ("JPY", "255", 255), ("KWD", "2.555", 2555)]
)
def test_currency(tmp_path: Path, currency: Currency, price: str, minor: int) -> None:
    """
    Prices are of the currency that the caller names, with the digits of its minor unit.
    """
    (invoice,) = read(write(tmp_path, [row(price=price)]), currency)

    assert isinstance(invoice, AcceptedInvoice)
    assert (invoice.order.currency, invoice.order.lines[0].unit_price_minor) == (currency, minor)
    assert survey(write(tmp_path, [row(price="2.5555")]), currency).refused == {RefusalReason.FRACTION: 1}
