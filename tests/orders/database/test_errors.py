"""The class of a database error says whether a batch is taken apart, mended, or run again."""

import psycopg
import pytest
from psycopg import AsyncConnection
from psycopg.errors import lookup

from orders.database.errors import ErrorClass, classify


@pytest.mark.parametrize(
    ("state", "error_class"),
    [
        ("22001", ErrorClass.ONE_IS_GUILTY),  # string_data_right_truncation
        ("22003", ErrorClass.ONE_IS_GUILTY),  # numeric_value_out_of_range
        ("22P02", ErrorClass.ONE_IS_GUILTY),  # invalid_text_representation
        ("23502", ErrorClass.ONE_IS_GUILTY),  # not_null_violation
        ("23503", ErrorClass.ONE_IS_GUILTY),  # foreign_key_violation
        ("23505", ErrorClass.ONE_IS_GUILTY),  # unique_violation
        ("23514", ErrorClass.PARTITION_MISSING),  # check_violation, of no constraint
        ("40001", ErrorClass.RUN_AGAIN),  # serialization_failure
        ("40P01", ErrorClass.RUN_AGAIN),  # deadlock_detected
        ("55P03", ErrorClass.RUN_AGAIN),  # lock_not_available
        ("55006", ErrorClass.RUN_AGAIN),  # object_in_use
        ("55P04", ErrorClass.CONNECTION_LOST),  # unsafe_new_enum_value_usage
        ("08006", ErrorClass.CONNECTION_LOST),  # connection_failure
        ("25006", ErrorClass.CONNECTION_LOST),  # read_only_sql_transaction: it was demoted
        ("25P03", ErrorClass.CONNECTION_LOST),  # idle_in_transaction_session_timeout
        ("0A000", ErrorClass.CONNECTION_LOST),  # feature_not_supported: a cached plan after a migration
        ("42P01", ErrorClass.CONNECTION_LOST),  # undefined_table
        ("53100", ErrorClass.CONNECTION_LOST),  # disk_full
        ("53300", ErrorClass.CONNECTION_LOST),  # too_many_connections
        ("57014", ErrorClass.CONNECTION_LOST),  # query_canceled
        ("57P01", ErrorClass.CONNECTION_LOST),  # admin_shutdown
        ("57P03", ErrorClass.CONNECTION_LOST),  # cannot_connect_now
        ("58030", ErrorClass.CONNECTION_LOST),  # io_error
        ("XX000", ErrorClass.CONNECTION_LOST),  # internal_error
    ],
)
def test_the_server_says_whose_fault_it_is(state: str, error_class: ErrorClass) -> None:
    """
    Data and constraints are a row's own fault; locks and serialization are nobody's; all else is the server's.
    """
    assert classify(lookup(state)("it says")) is error_class


@pytest.mark.parametrize(
    ("error", "error_class"),
    [
        (psycopg.DataError("PostgreSQL text fields cannot contain NUL"), ErrorClass.ONE_IS_GUILTY),
        (ValueError("year is out of range"), ErrorClass.ONE_IS_GUILTY),
        (OverflowError("too large"), ErrorClass.ONE_IS_GUILTY),
        (psycopg.OperationalError("the connection is closed"), ErrorClass.CONNECTION_LOST),
        (psycopg.InterfaceError("cursor is closed"), ErrorClass.CONNECTION_LOST),
        (OSError("broken pipe"), ErrorClass.CONNECTION_LOST),
    ],
)
def test_what_never_reached_the_server(error: Exception, error_class: ErrorClass) -> None:
    """
    A value that cannot be encoded is a row's own fault; where nothing was said, the outcome is unknown.
    """
    assert classify(error) is error_class


async def test_a_check_is_no_missing_partition(conn: AsyncConnection) -> None:
    """
    The server uses one SQLSTATE for a row that no partition takes and for a CHECK; only a CHECK has a name.
    """
    await conn.execute("CREATE TABLE parted (n int CHECK (n <> 13)) PARTITION BY RANGE (n)")
    for n, error_class in ((13, ErrorClass.ONE_IS_GUILTY), (12, ErrorClass.PARTITION_MISSING)):
        if n == 13:
            await conn.execute("CREATE TABLE part PARTITION OF parted FOR VALUES FROM (13) TO (14)")
        with pytest.raises(psycopg.errors.CheckViolation) as caught:
            await conn.execute("INSERT INTO parted VALUES (%s)", [n])
        assert classify(caught.value) is error_class
