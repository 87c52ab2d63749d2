"""Bugs that are planted on purpose, one at a time, to show that the tests would find them: `make sabotage`.

plants      what each bug changes, and which check has to catch it
scratch     a copy of the tree to plant in; the tree itself is never touched
check       runs a check in a copy, and says how it ended
__main__    the command: what has run is not run again

The product never imports it, and it imports nothing of the product.
"""
