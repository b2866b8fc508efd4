"""HTTP messages without sockets: strict parsers of requests, responses, and a parser of multipart forms."""
