"""Carry messages from an outbox table to RabbitMQ: at least once, and each key's in order.

    outbox row -> claim -> publish in waves -> confirm -> record

message        what travels; the body is sealed
waves          decides: what may be published now, at most one unconfirmed message of a key
replies        decides: what a reply of the broker means, a failure of the route or a rejected message
route_health   decides: which routes may be tried, and when again
outcome        decides: what is written down of a claim, and what is taken back
rate_limit     decides: how many rows a claim may have, and when the next may come
mark           decides: below which id nothing can ever be pending again
outbox_table   the PostgreSQL end: claim, record, park
database       connections, and what PostgreSQL's errors mean; severing: deadlines that end any call
frames         a message as the bytes of AMQP; amqp_bytes: what the broker says, read by hand
channel        one AMQP channel that takes a batch at once and keeps its confirms as ranges
publisher      the RabbitMQ end: connect, publish, tell each message's answer
topology       what has to be there before the first message
management     RabbitMQ's management interface: bindings and policies
guard          and is proven to have been there after each confirm, by queue sentinels
forward        the loop between the two ends
watch, upkeep  what runs beside it: LISTEN and the backlog, the partitions (outbox_partitions)
state          what the relay knows of itself; health, metrics: how it shows it
operate        what operators do: blocked, retry, skip, requeue, schema (outbox_repairs)
time_ago       times and spans of a command line
backoff        how long to wait before the next try; words: an error as one line
frame_filter   takes out of the stream to aiormq the frames that `channel` reads

It shares no Python with the service: what both need is in both, the same to the byte (tests/test_twins.py).
The relay knows the columns of the outbox table and the broker, and no service by name.
"""
