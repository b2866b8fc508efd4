"""Exchange of data with other systems: forwarding, Home Assistant, and the heartbeat of this server."""
