"""Commands of control.py, with one module per group of commands."""
