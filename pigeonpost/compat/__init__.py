"""Interfaces of older systems. Only the registration tables of the programs import this package."""
