"""The multicast bus: its packets, who is on it, what speaks on it; and the configuration of the system that it is from.

Runs on: node and server, where the bus is switched on.  Reached from: links/bus, links/router, commands.
Hands on to: nobody.  Threads: none; the parts say where they have some.  Errors: BadPacket, SettingsError.
"""
