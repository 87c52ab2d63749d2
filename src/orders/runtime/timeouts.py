"""How long each step may take, in one place, so that their sum keeps the promise that the api makes of the database.

While it is away a request is answered with 503 within PROMISE_SECONDS, and within PROMISE_SECONDS of its return with
201, whether it was stopped, does not answer, or nothing that is sent to it arrives. nginx waits longer than that for an
api, so the answer is always the api's own. `tests/orders/runtime/test_timeouts.py` adds them up.
"""

PROMISE_SECONDS = 2.0

# For all that a request asks of the database together, such as its key and then its order; then it gets its 503. What
# is left is for the way through nginx, and for processes that wait for a processor: with three other busy processes on
# two cores that came to 0.6 s.
PATIENCE_SECONDS = 1.3

# A statement that takes longer ends with its connection: nothing else ends it when the server answers nothing. Shorter
# than the patience, so that whoever waited for it can still be served on another connection.
STATEMENT_SECONDS = 1.0

# For an attempt to connect, whatever the number of servers in the URL. One that began just before the return may be
# lost with its packets: then it has to end, the longest pause has to pass, and the next one finds the server.
CONNECT_SECONDS = 1.5
HEAD_START_SECONDS = 0.3  # of each server before the next one in the URL is asked, too
FIRST_PAUSE_SECONDS = 0.05
LONGEST_PAUSE_SECONDS = 0.25  # four times a second costs neither side anything

# What a server in good health needs for a connection and a batch: some 0.05 s, measured.
HEALTHY_SECONDS = 0.25
