"""HTTP messages without sockets: strict request heads, responses, multipart forms."""
