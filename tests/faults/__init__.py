"""What keeps the promise when things are killed, cut and filled up: real programs, real files."""
