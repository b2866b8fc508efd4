"""HTTP messages without sockets: strict parsers of requests, credentials and multipart forms; responses."""
