"""Import of readings from files, and from the databases of other programs."""
