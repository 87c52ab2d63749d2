"""The measurements: `make bench`, or one of them with `make bench ONLY=placing`.

placing    orders a second through nginx: the tutorial's design, ours, and our stack with a handler that does nothing
listing    what listing orders by status costs, and what it would cost the placements

baseline   the tutorial's design, written from its description; its packages are an extra of their own
"""
