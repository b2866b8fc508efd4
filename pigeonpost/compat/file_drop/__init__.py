"""The file drop: uploads with SHA-256, as the older system has them."""
