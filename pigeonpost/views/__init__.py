"""Pages of the web interface, and the JSON API."""
