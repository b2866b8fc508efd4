"""Tests of the wake pipe: other threads and signals wake a thread that waits for sockets, at any time."""

import os
import selectors
import signal
import threading
import unittest

from pigeonpost.core.multicast import readable
from pigeonpost.core.wake_pipe import WakePipe
from tests.support import LIMIT_S


class Waking(unittest.TestCase):
    def setUp(self):
        self.pipe = WakePipe()
        self.addCleanup(self.pipe.close)

    def is_awake(self, limit_s=0.0):
        return bool(readable([self.pipe.fileno()], limit_s))

    def test_pipe_is_readable_between_wake_and_drain(self):
        self.assertFalse(self.is_awake())
        self.pipe.wake()
        self.assertTrue(self.is_awake())
        self.pipe.drain()
        self.assertFalse(self.is_awake())

    def test_signal_makes_the_pipe_readable(self):
        self.addCleanup(signal.set_wakeup_fd, signal.set_wakeup_fd(self.pipe.writer_fileno()))
        self.addCleanup(signal.signal, signal.SIGALRM, signal.signal(signal.SIGALRM, lambda number, frame: None))
        signal.raise_signal(signal.SIGALRM)
        self.assertTrue(self.is_awake())

    def test_drain_clears_several_wakes_at_once(self):
        for _ in range(100):
            self.pipe.wake()
        self.pipe.drain()
        self.assertFalse(self.is_awake())

    def test_drain_without_a_wake_does_not_block(self):
        self.pipe.drain()
        self.assertFalse(self.is_awake())

    def test_wake_never_blocks(self):
        for _ in range(100_000):  # more than the pipe holds
            self.pipe.wake()
        self.assertTrue(self.is_awake())

    def test_another_thread_wakes_the_waiting_thread(self):
        threading.Timer(0.01, self.pipe.wake).start()
        self.assertTrue(self.is_awake(LIMIT_S))

    def test_pipe_can_be_registered_with_a_selector(self):
        with selectors.DefaultSelector() as selector:
            selector.register(self.pipe, selectors.EVENT_READ)
            self.pipe.wake()
            self.assertEqual([key.fileobj for key, _ in selector.select(LIMIT_S)], [self.pipe])


class Closing(unittest.TestCase):
    def test_closing_twice_and_waking_afterwards_do_nothing(self):
        pipe = WakePipe()
        reader = pipe.fileno()
        pipe.close()
        self.assertEqual(pipe.fileno(), -1)
        other = WakePipe()  # its descriptors have the numbers of the closed ones
        self.addCleanup(other.close)
        self.assertEqual(other.fileno(), reader)
        pipe.close()
        pipe.wake()
        self.assertEqual(readable([other.fileno()], 0.0), [])

    def test_pipe_is_closed_when_it_is_garbage_collected(self):
        pipe = WakePipe()
        reader = pipe.fileno()
        del pipe
        with self.assertRaises(OSError):
            os.fstat(reader)

    def test_signal_may_interrupt_wake_and_close(self):
        """A handler runs in the main thread, between two steps of `wake` or `close`, and wakes the same pipe."""
        pipe, calls = WakePipe(), []
        self.addCleanup(pipe.close)

        def handler(number, frame):
            calls.append(number)
            pipe.wake()

        self.addCleanup(signal.signal, signal.SIGALRM, signal.signal(signal.SIGALRM, handler))
        with pipe._lock:  # as if the signal arrived during `wake`
            signal.raise_signal(signal.SIGALRM)
        self.assertEqual((len(calls), readable([pipe.fileno()], 0.0)), (1, [pipe.fileno()]))
        pipe.close()
        signal.raise_signal(signal.SIGALRM)
        self.assertEqual(len(calls), 2)


if __name__ == "__main__":
    unittest.main()
