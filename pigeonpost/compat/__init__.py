"""Interfaces of older systems. Only the programs' registration tables import this package."""
