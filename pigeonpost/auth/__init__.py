"""Authentication: tokens of nodes and programs, users of the web pages, sessions, throttling of failed logins."""
