"""Take orders, and see each of them through to its end.

    HTTP -> api -> batching -> place_orders -> orders + outbox   one transaction
                                                   |
                                     the relay, a program apart, knows only the outbox table
                                                   |
    RabbitMQ -> consumer -> work -> finish_orders -> orders + outbox

order          what an order is, and what a valid one looks like
events         what is told to others about an order
api            HTTP in and out; problems: how errors are answered
batching       many callers, one statement
place_orders   the promise: an order and its event, together or neither; cancel_orders: a status and its event
live           streams and waits: one statement per tick for all of them
listing        lists of orders, a page at a time
clients        who asks: API keys, without a query per request
periodic       what recurs beside the requests: ticks, keys to confirm, old keys to let go, the outbox's age
orders_table, outbox_table, keys_table, clients_table   every statement that names its table
consumer       deliveries in, acks out
work           what is done with one delivery
handlers       the work itself, chosen by a setting
finish_orders  a status and its event, together or neither
app, worker    the processes; topology, cli: the commands
"""
