"""The tutorial's design, as its description has it: FastAPI, SQLAlchemy, and a publish after the commit.

An honest implementation, tuned neither up nor down. It loses orders between the commit and the publish: that is what
the outbox is for. It runs in an environment of its own, with the packages of the extra `baseline`.
"""
