"""`orders reconcile`: find orders that are lost, stuck, doubled or out of order.

command   options, progress, the report on the screen
run       one run: copy, compare, read suspects again, repair
rules     decides what is wrong with an order
queries   the statements on PostgreSQL, which only read
scratch   a temporary SQLite database with copies of orders and outbox rows
"""
