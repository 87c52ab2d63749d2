"""Arrays as parameters of a batch statement, encoded in PostgreSQL's binary format.

psycopg's lists cost 5 to 10 us a row; these cost 2. An array here also has one type whatever its values are: psycopg
gives a list of NULLs alone another type, and each combination of types is another prepared statement.
"""

import struct
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import ClassVar
from uuid import UUID

import psycopg
from psycopg.abc import Buffer
from psycopg.adapt import Dumper
from psycopg.pq import Format

# How many dimensions, whether there is a NULL (nobody reads it), the elements' type and number, the first one's index.
_HEAD = struct.Struct("!iiIii").pack
_LENGTH = struct.Struct("!i").pack
_NULL = _LENGTH(-1)
_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


class PgArray(bytes):
    """An encoded array; its class tells psycopg its type."""

    element: ClassVar[int]  # the type's oid, which is the same in every PostgreSQL
    array: ClassVar[int]


class Uuids(PgArray):
    """A uuid[]."""

    element, array = 2950, 2951


class Texts(PgArray):
    """A text[]."""

    element, array = 25, 1009


class Blobs(PgArray):
    """A bytea[]."""

    element, array = 17, 1001


class Jsons(PgArray):
    """A json[]."""

    element, array = 114, 199


class Bigints(PgArray):
    """A bigint[]."""

    element, array = 20, 1016


class Times(PgArray):
    """A timestamptz[]."""

    element, array = 1184, 1185


class _EncodedDumper(Dumper):
    format = Format.BINARY

    def dump(self, obj: Buffer) -> Buffer:
        return obj


for _type in (Uuids, Texts, Blobs, Jsons, Bigints, Times):
    psycopg.adapters.register_dumper(_type, type(f"{_type.__name__}Dumper", (_EncodedDumper,), {"oid": _type.array}))


def uuids(values: Iterable[UUID]) -> Uuids:
    """Make a uuid[]."""
    return Uuids(_encoded_of_one_length(Uuids, [value.bytes for value in values]))


def texts(values: Iterable[str | None]) -> Texts:
    """Make a text[]; raise UnicodeEncodeError for what is no text."""
    return Texts(_encoded(Texts, [None if value is None else value.encode() for value in values]))


def blobs(values: Iterable[bytes | None]) -> Blobs:
    """Make a bytea[]."""
    return Blobs(_encoded(Blobs, list(values)))


def jsons(values: Iterable[bytes | None]) -> Jsons:
    """Make a json[] of what is JSON already."""
    return Jsons(_encoded(Jsons, list(values)))


def bigints(values: Iterable[int | None]) -> Bigints:
    """Make a bigint[]; raise OverflowError for a number that does not fit."""
    return Bigints(_encoded(Bigints, [None if value is None else value.to_bytes(8, signed=True) for value in values]))


def times(values: Iterable[datetime]) -> Times:
    """Make a timestamptz[]."""
    since = [((value - _EPOCH) // _MICROSECOND).to_bytes(8, signed=True) for value in values]
    return Times(_encoded_of_one_length(Times, since))


def _head(type_: type[PgArray], elements: Sequence[bytes | None]) -> bytes:
    return _HEAD(1, 1, type_.element, len(elements), 1)


def _encoded_of_one_length(type_: type[PgArray], elements: Sequence[bytes]) -> bytes:
    length = _LENGTH(len(elements[0])) if elements else b""
    return _head(type_, elements) + length + length.join(elements)


def _encoded(type_: type[PgArray], elements: Sequence[bytes | None]) -> bytes:
    if elements.count(None) == len(elements):
        return _head(type_, elements) + _NULL * len(elements)
    parts = [_NULL if element is None else _LENGTH(len(element)) + element for element in elements]
    return _head(type_, elements) + b"".join(parts)
