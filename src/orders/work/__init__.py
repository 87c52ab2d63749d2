"""From a message of the work queue to an order that has ended.

delivery            one delivery: claim, run, write the end or the retry, ack
batches             the statements for that, batched over the orders in hand
runner              one run of the handler, and its outcome as data
failure_log         the tracebacks of failed runs, once for each kind and minute
decision            what follows an outcome: the end, a retry, another run, or the dead letters
crash_isolation     runs suspects in child processes, to find the order whose handler ends its process
isolation_child     the child process of crash isolation
due_retries         the clock of the retries
sweep               brings back the orders that nothing carries
dead_letter_mover   moves the dead-letter queue into its table
watchdog            ends a worker whose event loop a handler blocks
hand_back           returns the orders of a worker that stops
health              readiness and numbers of the worker
"""
