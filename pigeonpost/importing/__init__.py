"""Import of readings from files and from databases of other programs."""
