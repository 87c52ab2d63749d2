"""The whole system on one machine: private servers, real processes, and faults on demand.

    choice -> servers -> system -> supervisor

choice      which servers: the environment's, Docker's, or this machine's own; one line says which and why
packages    the programs that `local` needs, installed where that is allowed
keeper      the parent of everything started here: what its owner leaves behind, it ends
process     one program, kept up: start, kill, pause, and the file with its pid
local_*     PostgreSQL and RabbitMQ as child processes
docker_*    the same as containers
servers     the two together, opened and closed as one
system      migrate, then nginx, the apis, relays and workers in front of given servers
supervisor  a system in the background, for `make up` and `make down`

For demo, tests, bench and chaos alike.
The product never imports it.
"""
