"""The web server: connections, limits, TLS, access control."""
