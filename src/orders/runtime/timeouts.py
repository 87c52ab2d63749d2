"""How long each step may take, in one place: their sum keeps the api's promise about an absent database.

While the database is away, a request gets its 503 within PROMISE_SECONDS; within PROMISE_SECONDS of the database's
return it gets its 201. This holds if the server was stopped, hangs, or is cut off. nginx waits longer than that for an
api, so the answer is always the api's own. `tests/orders/runtime/test_timeouts.py` adds the steps up.
"""

PROMISE_SECONDS = 2.0

# For all calls of one request together, such as the look-up of its API key and the insert; then it gets its 503. The
# rest of the promise is for the way through nginx, and for processes that wait for a processor: with three other busy
# processes on two cores that took 0.6 s.
PATIENCE_SECONDS = 1.3

# A statement that takes longer loses its connection: nothing else ends it when the server does not answer. Shorter than
# the patience, so that its callers can still be served on another connection.
STATEMENT_SECONDS = 1.0

# For one attempt to connect, whatever the number of servers in the URL. An attempt that began just before the server's
# return may have lost its packets: it has to end, the longest pause has to pass, and the next attempt succeeds.
CONNECT_SECONDS = 1.5
HEAD_START_SECONDS = 0.3  # of each server in the URL before the next one
FIRST_PAUSE_SECONDS = 0.05
LONGEST_PAUSE_SECONDS = 0.25  # four tries a second cost neither side anything

# A healthy server needs some 0.05 s for a connection and a batch, measured.
HEALTHY_SECONDS = 0.25
