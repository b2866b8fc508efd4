"""Fault tests of the promise (docs/promise.md): real programs and files.

Kills, power cuts, full disks, cut networks.
"""
