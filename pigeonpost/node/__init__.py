"""Parts of the node: sampling and the durable outbox."""
