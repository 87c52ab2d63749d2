"""What a database looks like, so that two of them can be compared, or one with nothing."""

from typing import LiteralString

import psycopg

# Of our own schema, whatever the server's version adds elsewhere. Two ways to one schema give the same answers.
COLUMNS: LiteralString = """
    SELECT c.relname, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull,
           pg_get_expr(d.adbin, d.adrelid), a.attgenerated
    FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
    LEFT JOIN pg_attrdef d ON (d.adrelid, d.adnum) = (c.oid, a.attnum)
    WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p', 'S', 'i', 'I', 'v') AND a.attnum > 0
      AND NOT a.attisdropped
"""
CONSTRAINTS: LiteralString = """
    SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint
    WHERE connamespace = 'public'::regnamespace
"""
INDEXES: LiteralString = "SELECT tablename, indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'"
TABLES: LiteralString = """
    SELECT relname, relkind, reloptions::text, pg_get_expr(relpartbound, oid) FROM pg_class
    WHERE relnamespace = 'public'::regnamespace
"""
FUNCTIONS: LiteralString = """
    SELECT proname, prosrc, prosecdef, proconfig::text FROM pg_proc WHERE pronamespace = 'public'::regnamespace
"""
TYPES: LiteralString = """
    SELECT typname FROM pg_type WHERE typnamespace = 'public'::regnamespace AND typtype IN ('e', 'd')
"""
TRIGGERS: LiteralString = "SELECT tgrelid::regclass::text, tgname FROM pg_trigger WHERE NOT tgisinternal"

OF_ALEMBIC = "alembic_version"


def look(url: str) -> dict[str, list[tuple[object, ...]]]:
    """Return everything there is, but for what Alembic itself keeps."""
    queries = {
        "columns": COLUMNS,
        "constraints": CONSTRAINTS,
        "indexes": INDEXES,
        "tables": TABLES,
        "functions": FUNCTIONS,
        "types": TYPES,
        "triggers": TRIGGERS,
    }
    with psycopg.connect(url) as conn:
        found = {what: conn.execute(query).fetchall() for what, query in queries.items()}
    return {
        what: sorted((row for row in rows if not str(row[0]).startswith(OF_ALEMBIC)), key=repr)
        for what, rows in found.items()
    }
