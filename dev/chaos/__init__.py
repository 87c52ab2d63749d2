"""Break the whole system on purpose, and prove from outside that nothing was lost, doubled or reordered.

    seed -> schedule -> faults -> settle -> invariants -> report

stage       the real processes, with a wire on every edge between them (amqp_wire knows the broker's frames)
clients     place orders, and write down what they were promised (ledger)
recorder    subscribes to every event, and writes down what is heard
handlers    the work: each effect is a line on disk
schedule    a seed makes a plan: which kinds of faults, when, how long, where
faults      each fault is a function that says when it fired
evidence    all that was written down, and the tables
invariants  I1 to I15: what has to be true of the evidence, and what makes a run vacuous
report      table, JSON, one HTML page
inside      loaded into the processes themselves: points to crash at, and other clocks; the product knows nothing of it

The names of faults (P1, N4 …) and invariants (I1 …) are those of docs/reliability.md.
"""
