"""The ground: errors and the clock (floor 0), settings and the running of a program (floor 1).

Runs on: node and server.
"""
