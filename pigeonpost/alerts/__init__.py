"""Alerts and reports: rules, messages, and the channels that deliver them."""
