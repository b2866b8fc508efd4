"""Authentication: tokens of nodes, users of the page, sessions, throttling of failed logins."""
