"""`orders replay`: place the invoices of a CSV file as orders, and follow each to its end.

command    options, progress, the report on the screen
client     sends the invoices, follows the orders, counts
invoices   reads the file, and decides which invoices are accepted
"""
