"""The version of this program, in one place.  Runs on: node and server."""

VERSION = "0.1.0"
