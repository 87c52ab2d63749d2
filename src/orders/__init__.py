"""Orders: take orders over HTTP, publish their events through an outbox, and work each order to its end.

    client -> api -> batcher -> place_orders -> orders + outbox            one transaction
                                                    |
                                 the relay, a program of its own, knows only the table outbox
                                                    |
    RabbitMQ -> consumer -> delivery -> claim_orders -> handler -> finish_orders -> orders + outbox
                                |                          |
                                |                          +-> postpone_orders -> retries -> outbox
                                +-> dead-letter queue -> dead_letter_mover -> dead_letters

Public API, for those who write handlers and subscribers; everything else may change in any version:

orders.handlers       `Refuse`, `Retry`, and the handlers of this package
orders.subscriber     `Subscription` and `main`: a consumer of the events, each event's effect once
orders.model.order    `Order`, `Line`, `Status`
orders.model.events   `Envelope`, `Data`, `EventType`, `open_envelope`

Processes, then packages; each may import those below it:

app, worker           the api and the worker; app.py and worker.py put their parts together
cli, healthcheck      the command `orders`; a look at a health endpoint, for containers
__main__              starts cli, or names the packages that are missing
handlers, subscriber  public, as above

tools      commands: client, admin, dead letters, doctor, reconcile, replay
api        HTTP: routes, fast path, problems, authentication, live status
work       from a message of the work queue to an order that has ended
database   connections, batches, and one module for each table and each transition of an order
broker     connections to RabbitMQ, topology, consumer
runtime    settings, start and stop of a process, timeouts, the HTTP server
model      orders, events and messages, without I/O

Some modules are in the relay, too, the same to the byte (tests/test_twins.py).
"""
