"""An order's two changes, claimed and finished, find room in its own page.

A batch claims all orders of a page at once, and what it replaces can be swept away only after its commit. With a fifth
of the page free most of them went to another page, and then each of their index entries is written anew.
"""

from migrations.run_sql import run_sql

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    run_sql("ALTER TABLE orders SET (fillfactor = 50)")


def downgrade() -> None:
    run_sql("ALTER TABLE orders SET (fillfactor = 80)")
