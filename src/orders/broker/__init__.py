"""RabbitMQ: connections, topology, and consuming.

rabbitmq       a connection that notices when the broker is gone
topology       exchanges, queues and bindings: declared by `orders topology`, verified by the processes
users          the users of the processes, and what each may do
management     reads bindings and policies from RabbitMQ's management interface
policy_watch   knows the policies that give up messages of the worker's queues
consumer       consumes a queue, and acks in batches
frame_filter   takes deliveries from the byte stream, before aiormq makes objects of them
amqp_bytes     reads the few AMQP frames that are taken there
"""
