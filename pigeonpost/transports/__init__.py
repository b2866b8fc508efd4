"""Transports from node to server: TCP, HTTP push, MQTT; discovery on the local network."""
