"""Types of samples, and their encoding and decoding on the link; no I/O, no clock."""
