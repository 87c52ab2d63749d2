"""Orders, events and messages: what they are, without any I/O.

order           `Order`, `NewOrder`, and their valid values (public API)
events          the events about an order, as CloudEvents (public API)
work_message    the message that asks a worker to work an order
currencies      the currency codes of ISO 4217
ids             UUIDv7 and random bytes
traceparent     the W3C trace context
errors          the errors of this package
error_text      an error's message as text
storable_text   any text as PostgreSQL can store it
"""
