"""The multicast bus of the older system: packets, components, router, configuration."""
