"""Tests of the life cycle of a program: order of components, errors, signals, systemd."""

import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
import unittest
from unittest import mock

from pigeonpost.core import lifecycle
from pigeonpost.core.errors import DiskError, InUse, SettingsError
from pigeonpost.core.lifecycle import Lifecycle, LifecycleComponent
from tests.support import LIMIT_S, ROOT, clean_environment, rounds, temp_folder, wait_until


class LifecycleCase(unittest.TestCase):
    """Base class. `run` belongs to the main thread, which also runs the tests; what it changes is restored."""

    def setUp(self):
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            self.addCleanup(signal.signal, number, signal.getsignal(number))
        self.addCleanup(signal.set_wakeup_fd, -1)
        self.addCleanup(setattr, threading, "excepthook", threading.excepthook)
        patched = mock.patch.dict(os.environ)
        patched.start()
        self.addCleanup(patched.stop)
        for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC"):
            os.environ.pop(name, None)
        self.calls = []

    def part(self, name, start=None, stop=None):
        def note(what, then):
            def call(*arguments):
                self.calls.append(f"{what} {name}")
                return then(*arguments) if then else None

            return call

        return LifecycleComponent(name, note("start", start), note("stop", stop))

    def fail_with(self, error):
        def fail(*_):
            raise error

        return fail


class Order(LifecycleCase):
    def test_components_start_in_order_and_stop_in_reverse_order(self):
        program = Lifecycle([self.part("a"), self.part("b"), self.part("c")])
        status = program.run(lambda: (self.calls.append("ready"), program.end("enough")))
        self.assertEqual(status, 0)
        self.assertEqual(self.calls, ["start a", "start b", "start c", "ready", "stop c", "stop b", "stop a"])

    def test_program_that_was_ended_before_its_start_stops(self):
        program = Lifecycle([self.part("a")])
        program.end("first")
        program.end("second")
        self.assertEqual(program.run(lambda: None), 0)
        self.assertEqual(self.calls, ["start a", "stop a"])
        self.assertEqual(program.reason, "first")

    def test_failed_start_of_a_component_stops_the_earlier_ones(self):
        for error, status in ((SettingsError("x"), 2), (DiskError("x"), 74), (InUse("x"), 75)):
            self.calls.clear()
            program = Lifecycle([self.part("a"), self.part("b", self.fail_with(error)), self.part("c")])
            with self.assertLogs("pigeonpost.core.lifecycle", "CRITICAL"):
                self.assertEqual(program.run(lambda: self.fail("not ready")), status)
            self.assertEqual(self.calls, ["start a", "start b", "stop a"])

    def test_lack_of_threads_or_memory_at_the_start_ends_the_program(self):
        for error, reason in ((RuntimeError("can't start new thread"), "can't start new"), (MemoryError(), "Memory")):
            self.calls.clear()
            program = Lifecycle([self.part("a"), self.part("b", self.fail_with(error))])
            with self.assertLogs("pigeonpost.core.lifecycle", "CRITICAL"):
                self.assertEqual(program.run(lambda: self.fail("not ready")), 70)
            self.assertEqual(self.calls, ["start a", "start b", "stop a"])
            self.assertIn(reason, program.reason)

    def test_program_ends_without_memory_for_the_log_line(self):
        program = Lifecycle([self.part("a")])
        with mock.patch.object(lifecycle.log, "critical", side_effect=MemoryError), self.assertRaises(MemoryError):
            program.fail(MemoryError())
        self.assertEqual((program.run(lambda: None), program.reason), (70, "MemoryError"))

    def test_error_of_a_stop_does_not_prevent_other_stops(self):
        program = Lifecycle([self.part("a"), self.part("b", stop=self.fail_with(RuntimeError("oh"))), self.part("c")])
        with self.assertLogs("pigeonpost.core.lifecycle", "WARNING") as logged:
            status = program.run(program.end)
        self.assertEqual(self.calls[3:], ["stop c", "stop b", "stop a"])
        self.assertEqual(status, 70)
        self.assertIn("b: internal error while stopping", logged.output[0])
        self.assertIn("RuntimeError: oh", logged.output[0])

    def test_unfinished_work_is_logged(self):
        program = Lifecycle([self.part("links", stop=lambda limit_s: "2 connections did not end")])
        with self.assertLogs("pigeonpost.core.lifecycle", "WARNING") as logged:
            program.run(program.end)
        self.assertEqual(logged.output, ["WARNING:pigeonpost.core.lifecycle:links: 2 connections did not end"])

    def test_time_limit_applies_to_all_stops_together(self):
        limits = []

        def stop(limit_s):
            limits.append(limit_s)
            now[0] += 3.0

        now = [100.0]
        program = Lifecycle([self.part(name, stop=stop) for name in "abc"])
        with mock.patch.object(lifecycle.time, "monotonic", lambda: now[0]):
            program.run(program.end)
        self.assertEqual(limits, [4.0, 1.0, 0.1])

    def test_internal_error_of_a_thread_ends_the_program(self):
        def start():
            def die():
                raise KeyError("an internal error")

            thread = threading.Thread(target=die, name="writer")
            thread.start()

        program = Lifecycle([self.part("a", start)])
        with self.assertLogs("pigeonpost.core.lifecycle", "CRITICAL") as logged:
            self.assertEqual(program.run(lambda: None), 70)
        self.assertIn("writer ended because of an internal error", logged.output[0])
        self.assertIn("KeyError: 'an internal error'", logged.output[0])
        self.assertEqual(self.calls, ["start a", "stop a"])

    def test_reason_of_the_end_is_logged_once(self):
        for end, lines in (
            (lambda program: program.end("received SIGTERM"), ["INFO:ended: received SIGTERM"]),
            (lambda program: program.end(), ["INFO:ended"]),
            (lambda program: program.fail(DiskError("full")), ["CRITICAL:full", "INFO:ended with exit status 74"]),
        ):
            program = Lifecycle([])
            with self.assertLogs("pigeonpost.core.lifecycle", "INFO") as logged:
                program.run(lambda program=program, end=end: end(program))
            self.assertEqual([line.replace("pigeonpost.core.lifecycle:", "") for line in logged.output], lines)

    def test_disk_error_ends_the_program_with_its_exit_status(self):
        program = Lifecycle([self.part("a")])
        with self.assertLogs("pigeonpost.core.lifecycle", "CRITICAL") as logged:
            self.assertEqual(program.run(lambda: program.fail(DiskError("outbox.ring: Input/output error"))), 74)
        self.assertEqual(logged.output, ["CRITICAL:pigeonpost.core.lifecycle:outbox.ring: Input/output error"])

    def test_first_error_is_the_reason(self):
        program = Lifecycle([self.part("a", stop=self.fail_with(RuntimeError("for lack of a disk")))])
        with self.assertLogs("pigeonpost.core.lifecycle", "CRITICAL"):
            self.assertEqual(program.run(lambda: program.fail(DiskError("first"))), 74)
        self.assertEqual(program.reason, "first")


class Checks(LifecycleCase):
    def test_component_is_checked_periodically(self):
        def check():
            self.calls.append("check")
            if self.calls.count("check") == 3:
                program.end()

        program = Lifecycle([self.part("a")._replace(check=check, check_s=0.001), self.part("b")])
        self.assertEqual(program.run(lambda: self.calls.append("ready")), 0)
        self.assertEqual(self.calls, ["start a", "start b", "ready", *["check"] * 3, "stop b", "stop a"])

    def test_failed_check_stops_all_components(self):
        for error, status in ((DiskError("x"), 74), (RuntimeError("can't start new thread"), 70)):
            self.calls.clear()
            program = Lifecycle([self.part("a")._replace(check=self.fail_with(error), check_s=0.001)])
            with self.assertLogs("pigeonpost.core.lifecycle", "ERROR"):
                self.assertEqual(program.run(lambda: None), status)
            self.assertEqual(self.calls, ["start a", "stop a"])


class Signals(LifecycleCase):
    def test_signals_end_the_program(self):
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the end of a program ignores it
            program = Lifecycle([self.part("a")])
            self.assertEqual(program.run(lambda number=number: os.kill(os.getpid(), number)), 0)
            self.assertEqual(program.reason, f"received {number.name}")

    def test_closed_terminal_does_not_end_a_program_started_by_nohup(self):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        program = Lifecycle([])
        program.run(lambda: [os.kill(os.getpid(), number) for number in (signal.SIGHUP, signal.SIGTERM)])
        self.assertEqual(program.reason, "received SIGTERM")

    def assert_ends(self, code, *arguments):
        """Assert that a new Python process runs `code` to its end."""
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code) + "print('all ended', flush=True)\nos._exit(0)", *arguments],
            cwd=ROOT, env=clean_environment(), stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            said, _ = process.communicate(timeout=LIMIT_S)
        except subprocess.TimeoutExpired:
            self.fail("the process does not end")
        finally:
            process.kill()
            process.communicate()
        self.assertEqual(said, "all ended\n")

    def test_signal_in_another_thread_ends_the_program(self):
        """Such a signal does not interrupt waiting, nor does one that arrives just before the main thread waits."""
        self.assert_ends("""
            import os, signal, threading, time
            from pigeonpost.core.lifecycle import Lifecycle

            def send_signal():
                waiting.wait()
                time.sleep(0.1)
                signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
                time.sleep(1000)

            waiting = threading.Event()
            threading.Thread(target=send_signal, daemon=True).start()
            Lifecycle([]).run(waiting.set)
        """)

    def test_signal_after_the_end_does_not_change_the_exit_status(self):
        """Python restores the default signal handlers while it ends, so a signal would kill the program."""
        code = """
            import os, signal, sys
            from pigeonpost.core.errors import DiskError
            from pigeonpost.core.lifecycle import Lifecycle

            class Late:
                def __del__(self, kill=os.kill, process=os.getpid(), number=signal.SIGTERM):
                    kill(process, number)

            late = Late()
            program = Lifecycle([])
            sys.exit(program.run(lambda: program.fail(DiskError("broken"))))
        """
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT, capture_output=True, timeout=LIMIT_S
        )
        self.assertEqual(done.returncode, 74, done.stderr)

    def test_signal_at_any_time_ends_the_program(self):
        """A handler runs between any two steps of the main thread, and must not wait for one of its locks."""
        turns = rounds("PIGEONPOST_TEST_SIGNALS", 100, 300)
        self.assert_ends("""
            import os, random, signal, sys
            from pigeonpost.core.lifecycle import Lifecycle

            os.environ["WATCHDOG_USEC"] = "2"  # so that it continuously starts and ends waiting
            for turn in range(int(sys.argv[1])):
                def ready():
                    signal.signal(signal.SIGALRM, signal.getsignal(signal.SIGTERM))
                    signal.setitimer(signal.ITIMER_REAL, random.uniform(0.0005, 0.003), 0.001)
                Lifecycle([]).run(ready)
                signal.setitimer(signal.ITIMER_REAL, 0)
                signal.signal(signal.SIGALRM, signal.SIG_IGN)
        """, str(turns))  # fmt: skip


class Systemd(LifecycleCase):
    def listen(self, address):
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.addCleanup(sock.close)
        sock.bind(address)
        sock.settimeout(LIMIT_S)
        return sock

    def test_systemd_is_notified_of_start_and_stop(self):
        path = os.path.join(temp_folder(self), "notify")
        for address, name in ((path, path), (f"\0pigeonpost-{os.getpid()}", f"@pigeonpost-{os.getpid()}")):
            sock = self.listen(address)
            os.environ["NOTIFY_SOCKET"] = name
            program = Lifecycle([])
            program.run(program.end)
            self.assertEqual([sock.recv(100), sock.recv(100)], [b"READY=1", b"STOPPING=1"])

    def test_watchdog_is_notified_twice_per_interval(self):
        sock = self.listen(path := os.path.join(temp_folder(self), "notify"))
        os.environ |= {"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "20000"}
        program = Lifecycle([])

        def listen():
            received = [sock.recv(100) for _ in range(4)]
            program.end(repr(received))

        thread = threading.Thread(target=listen)
        began_s = time.monotonic()
        program.run(thread.start)
        thread.join(LIMIT_S)
        self.assertEqual(program.reason, repr([b"READY=1", b"WATCHDOG=1", b"WATCHDOG=1", b"WATCHDOG=1"]))
        self.assertGreater(time.monotonic() - began_s, 0.029)

    def test_missing_notification_socket_is_only_logged(self):
        os.environ["NOTIFY_SOCKET"] = "/nowhere/notify"
        program = Lifecycle([])
        with self.assertLogs("pigeonpost.core.lifecycle", "WARNING"):
            self.assertEqual(program.run(program.end), 0)

    def test_invalid_watchdog_interval_is_ignored(self):
        for text in ("", "often", "-1"):
            with mock.patch.dict(os.environ, WATCHDOG_USEC=text):
                self.assertIsNone(lifecycle._watchdog_s())


class TestHelpers(unittest.TestCase):
    def test_wait_until_fails_after_its_limit(self):
        with self.assertRaises(AssertionError):
            wait_until(lambda: False, limit_s=0.01)


if __name__ == "__main__":
    unittest.main()
