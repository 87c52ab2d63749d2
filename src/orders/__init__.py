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
place_orders   the promise: an order and its event, together or neither
orders_table, outbox_table, keys_table   every statement that names its table
consumer       deliveries in, acks out
work           what is done with one delivery
handlers       the work itself, chosen by a setting
finish_orders  a status and its event, together or neither
app, worker    the processes; topology, cli: the commands
"""
