"""Take orders, and see each of them through to its end.

    HTTP -> api -> batcher  -> place_orders -> orders + outbox   one transaction
                                                   |
                                     the relay, a program apart, knows only the outbox table
                                                   |
    RabbitMQ -> consumer -> work -> claim_orders -> run_handler -> finish_orders -> orders + outbox
                              |                        |
                              |                        +-> postpone_orders -> retries -> outbox
                              +-> the dead letters -> dead_letters -> letters, a table

order          what an order is, and what a valid one looks like
events         what is told to others about an order
api            HTTP in and out; problems: how errors are answered
batcher        many callers, one statement
place_orders   the promise: an order and its event, together or neither; cancel_orders: a status and its event
live           streams and waits: one statement per tick for all of them
listing        lists of orders, a page at a time
clients        who asks: API keys, without a query per request
periodic       what recurs beside the requests: ticks, keys to confirm, old keys to let go, the outbox's age
orders_table, outbox_table, idempotency_keys_table, api_keys_table   every statement that names its table
consumer       deliveries in, acks out; frame_filter, amqp_bytes: what is read of the stream to aiormq by hand
work           what is done with one delivery
handlers       the work itself, chosen by a setting
run_handler    one run of it, and what came of that; suspects, trial: in a child process
claim_orders, finish_orders, postpone_orders, redrive_orders   a status and its event, together or neither
retries        the clock of what has to wait
letters        messages that are never worked; dead_letters: how they get to their table; dead: the commands for it
actor          who ran a command, for the audit
inbox          each event once, for whoever consumes them; subscriber: such a consumer
database       connections; severing: deadlines that end any call
backoff        how long to wait before the next try; pauses: one after the other; words: an error as one line
app, worker    the processes; topology, cli: the commands

amqp_bytes, backoff, severing, frame_filter, error_text and time_ago are in the relay too, the same to the byte
(tests/test_twins.py).
"""
