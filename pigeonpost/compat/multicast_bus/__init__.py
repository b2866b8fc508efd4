"""Multicast bus of the older multi-sensor system: packets, components, router and configuration."""
