"""The node: sampling, and the durable outbox."""
