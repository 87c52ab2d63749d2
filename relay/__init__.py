"""Carry messages from an outbox table to RabbitMQ: at least once, and each key's messages in order.

    outbox row -> claim -> publish in waves -> confirm -> record

The relay knows the columns of the outbox table and the broker, and no service by name. Its modules, along a claim:

__main__           the process, `python -m relay`: start, stop, and the commands of operators
forward            the loop of one claimer: claim, publish, record
parallel_claims    which shards a claimer takes, whether it has work, how long it pauses
claim_session      the database session of a claimer, and the proof that its transaction stands
rate_limit         how many rows a claim may have, and when the next one may come
routes             the routes as a claimer uses them: which it may try, which it closes
route_health       which routes failed, and when each may be tried again
outbox_table       the statements of the loop: claim, settle, park, block, mark
message            what a claim carries; the relay does not read the body
wave_publisher     publishes a claim wave by wave, and sorts the replies into its outcome
waves              which messages of a claim may go now: at most one unconfirmed message of a key
publisher          the connection to RabbitMQ: publish a wave, return the reply to each message
channel            an AMQP channel that takes a whole wave and keeps its confirms
frames             a message as AMQP frames
frame_filter       takes the frames that `channel` reads out of the stream to aiormq
amqp_bytes         reads those frames
replies            what a reply means: sent, unrouted, a route failure, or rejected
guard              proves after the confirms that required messages reached their queues
topology           verifies exchanges and queues at the start; declares them for `relay declare`
policies           warns of policies that come later and lose messages
management         reads bindings and policies from RabbitMQ's management interface
outcome            what becomes of each message of a claim
stored_mark        the low-water mark of a claimer: loaded, moved, saved
mark               how far the mark may move

Beside the loop:

watch              LISTEN, and the count of the backlog
upkeep             makes partitions ahead, and drops those past their retention
outbox_partitions  the statements of upkeep
state              what the relay knows of itself
health             shows it over HTTP: /health, /status, /metrics
metrics            a Prometheus histogram for batches
operate            the operators' commands: blocked, retry, skip, requeue, schema, declare
outbox_repairs     their statements
actor              who runs them, for the audit
time_ago           parses the times of a command line

Below all of them:

settings           the settings, from the environment
setting_files      settings from files
database           connections to PostgreSQL, and what its errors mean
session_probe      proves at the start that a connection is a session of its own
severing           deadlines that end any call to PostgreSQL
backoff            how long to wait before the next try
error_text         an error as one line

The relay shares no Python with the service: what both need is in both, the same to the byte (tests/test_twins.py).
"""
