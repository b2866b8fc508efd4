"""Whatever these tests are started by, the programs that they start can be ended by Ctrl-C."""

import signal

# What is ignored stays ignored in a program that is started; a handler does not. Shells ignore it for their background.
signal.signal(signal.SIGINT, signal.default_int_handler)
