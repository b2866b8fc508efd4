"""Everything of Pigeonpost that is not a program or named by the design: packages by what they do."""
