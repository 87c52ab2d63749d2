"""A consumer of our events: one mail for each order that is done, however often its event comes.

    DATABASE_URL=... AMQP_URL=... python -m examples.mailer

It writes the mail to a table, from which a mail program would take it: in the transaction that notes the event, so
there is neither a mail without an event nor a second one. A call to the outside instead would need a key of its own,
and `event.id` is one.
"""

from psycopg import AsyncConnection

from orders import subscriber
from orders.model.events import Envelope
from orders.subscriber import Subscription


async def create_table(conn: AsyncConnection) -> None:
    """Make the table of the mails to be sent, if it is not there."""
    await conn.execute(
        """
        CREATE TABLE IF NOT EXISTS mails (
            id       bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
            to_whom  text        NOT NULL,
            subject  text        NOT NULL,
            at       timestamptz NOT NULL DEFAULT clock_timestamp()
        )
        """
    )


async def write_mail(event: Envelope, conn: AsyncConnection) -> None:
    """Thank the customer."""
    order = event.data
    if order.customer_id is None:
        return  # one of the tutorial's: nobody to thank
    await conn.execute(
        "INSERT INTO mails (to_whom, subject) VALUES (%s, %s)",
        [order.customer_id, f"Your order {order.reference or order.order_id} is on its way"],
    )


MAILER = Subscription("mailer", ("order.done",), write_mail, prepare=create_table)

if __name__ == "__main__":
    subscriber.main(MAILER)
