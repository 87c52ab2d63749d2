"""Break the whole system on purpose, and prove from outside that nothing was lost, doubled or reordered.

    seed -> schedule -> faults -> settle -> invariants -> report

__main__         the command: runs seeds that have not been run
schedule         a seed makes a plan: which kinds of faults, when, how long, where
run              runs one seed: clients, recorder and faults side by side, until the system has settled
stage            the real processes, with a wire on every edge between them
amqp_wire        a wire that knows the broker's frames
clients          place orders, and record what they were promised
ledger           the file in which they record it
recorder         subscribes to every event, and records what arrives
handlers         the work: each effect is a line on disk
effect           that line
act              a fault is a function that says when it fired; each kind is registered here
process_faults   processes that are killed or stopped
code_faults      crashes at points inside the code, and clocks that are wrong
network_faults   wires that are cut, slow or silent
database_faults  what happens to PostgreSQL
broker_faults    what happens to RabbitMQ
client_faults    clients that misbehave
operator_faults  what operators do meanwhile, and mistakes at a start
evidence         all that was recorded, and the tables
invariants       I1 to I15: what has to be true of the evidence, and what makes a run vacuous
report           table, JSON, one HTML page

`inside/` is loaded into the processes: points to crash at, and other clocks. The product knows nothing of it. The names
of faults (P1, N4 ...) and invariants (I1 ...) are those of docs/reliability.md.
"""
