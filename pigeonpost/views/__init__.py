"""Pages of the web interface, and the JSON interface."""
