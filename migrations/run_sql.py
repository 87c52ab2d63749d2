"""Run SQL exactly as it is written: no bind parameters, no placeholders, online and offline alike."""

from alembic import op


def run_sql(*statements: str) -> None:
    """Run each statement untouched; with `--sql` print it instead.

    `op.execute` would take `:name` for a bind parameter, and psycopg a lone percent sign for a placeholder.
    """
    context = op.get_context()
    for statement in statements:
        if context.as_sql:
            context.impl.static_output(statement.strip() + "\n;\n")  # on its own line: the last may be a comment
        else:
            op.get_bind().execution_options(no_parameters=True).exec_driver_sql(statement)
