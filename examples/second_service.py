"""A second service, whose events the same relay carries: it knows the outbox table, and neither orders nor RabbitMQ.

DATABASE_URL=postgresql://... python examples/second_service.py greenhouse-1 21.5
"""

import json
import os
import sys
import uuid

import psycopg

CREATE = "CREATE TABLE IF NOT EXISTS sensors (sensor text PRIMARY KEY, celsius numeric NOT NULL)"

# The insert or update locks the sensor's row before the outbox draws an id: that is what keeps its events in order.
MEASURE = "INSERT INTO sensors VALUES (%s, %s) ON CONFLICT (sensor) DO UPDATE SET celsius = excluded.celsius"

APPEND = """
    INSERT INTO outbox (event_id, key, exchange, routing_key, required, content_type, headers, body)
    VALUES (%s, %s, 'sensors', 'sensor.measured', true, 'application/json', '{}', %s)
"""


def measure(database_url: str, sensor: str, celsius: float) -> None:
    """Store a measurement and its event together, or neither; then wake the relay."""
    with psycopg.connect(database_url) as conn, conn.transaction():
        conn.execute(MEASURE, (sensor, celsius))
        body = json.dumps({"sensor": sensor, "celsius": celsius}).encode()
        conn.execute(APPEND, (uuid.uuid4(), sensor, body))
    with psycopg.connect(database_url, autocommit=True) as conn:
        conn.execute("NOTIFY outbox")


if __name__ == "__main__":
    with psycopg.connect(os.environ["DATABASE_URL"]) as connection:
        connection.execute(CREATE)
    measure(os.environ["DATABASE_URL"], sys.argv[1], float(sys.argv[2]))
