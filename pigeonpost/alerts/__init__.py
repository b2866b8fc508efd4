"""Alerts and reports: rules, and the channels by which they are delivered."""
