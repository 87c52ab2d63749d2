"""Commands of the service, for its clients and its operators: `orders …`, put together in orders.cli.

client             place, get, watch, cancel, list: a client's commands, over the HTTP API
attempts           get --attempts: how the attempts at an order ended, on the database
admin              clients, purge: API keys and old orders, on the database
dead_letters       dead: list, redrive and discard dead letters, on the database
roles              roles: let the processes log in as roles of their own
doctor             doctor: check every part of the system
running_code       whether processes run older code than this folder has, for doctor
reconcile          reconcile: compare orders, outbox and work queue, and repair what was lost
replay             replay: place the invoices of a file and follow the orders

database_command   what commands on the database share: connection, deadlines, errors
actor              who runs a command, for the audit
command_line       what all commands share: errors in one line, parsed parameters
time_ago           times and spans of a command line
run_env            the addresses that `make up` writes in `.run/env`
"""
