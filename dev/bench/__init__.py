"""The measurements: `make bench`, the long form with `make bench FULL=1`, one of them with `make bench ONLY=placing`.

placing    orders a second through nginx: the tutorial's design, ours, and our stack with a handler that does nothing
batch      orders by batches of 100 beside single placements, and the memory that batches of 1,000 take
reads      an order, a page of a list and the opening of a stream, beside a handler that does nothing
relay      the relay's rate, its latency, what does not change them, and what a relay costs that has nothing to do
end_to_end orders from the client to done: the highest rate, what is sustained, what an order waits at each leg
limits     what the servers do without us: our own statement by pgbench, and a consumer that only acks
everyday   what an order costs at a steady 20, 50, 100, 500 and 1,000 a second, also in turn with an earlier commit
footprint  start-up times, connections, memory and idle CPU; WAL, statements and CPU time of an order
streams    a thousand live streams on one api: what they cost, how soon a change is seen, how soon they end
away       how soon placements say so when the database goes away, and how soon they are taken again when it is back
listing    what listing orders by status costs, and what it would cost the placements

measurement  runs the sides of a comparison in turn, and prints medians with minima and maxima
outbox       databases with much in their outbox
pgbench      its call
record       the JSON under `.run/bench/`: each run as it ends, the machine, the versions, the settings
processes    what a process costs
statements   who sends how many SQL statements
cpu          what each program spends meanwhile
plot, draw   the same as SVG
baseline     the tutorial's design, written from its description; its packages are an extra of their own

What the pages tell stands in `dev/bench/results/`: the JSON of the run that it comes from.
"""
