"""Commands of control.py, one module per group."""
