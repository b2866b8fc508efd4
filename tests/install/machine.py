"""A booted Debian: systemd as process 1 in a container of systemd-nspawn, on a temporary copy of a root."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
import unittest
from collections.abc import Mapping

from tests.install.roots import root_of
from tests.support import LIMIT_S, ROOT, wait_until

Result = subprocess.CompletedProcess[str]
_BOOT_S = 120.0
_STOP_S = 10.0
_CGROUPS = "/sys/fs/cgroup"
_UNIFIED = f"{_CGROUPS}/unified"  # exists if the host has both hierarchies


class Machine:
    """One booted machine. It ends with the test class or the test that made it.

        machine = Machine("bookworm")
        cls.addClassCleanup(machine.stop)      # or test.addCleanup
        machine.run("systemctl", "start", "pigeonpost-server")

    Its only network is loopback, or with `network` that of the host.
    """

    def __init__(self, release: str, network: bool = False) -> None:
        lower = root_of(release)
        self._folder = tempfile.mkdtemp(prefix="pigeonpost-machine-", dir="/var/tmp")
        upper, work, self.root = (os.path.join(self._folder, name) for name in ("upper", "work", "root"))
        for folder in (upper, work, self.root):
            os.mkdir(folder)
        layers = f"lowerdir={lower},upperdir={upper},workdir={work}"
        subprocess.run(["mount", "-t", "overlay", "overlay", "-o", layers, self.root], check=True)
        name = os.path.basename(self._folder).replace("_", "0")  # a host name: no "_", and no "-" at its end
        command = ["systemd-nspawn", "--boot", f"--directory={self.root}", f"--machine={name}"]
        command += ["--register=no", "--keep-unit", "--console=pipe"]
        # systemd restricts the devices of units by BPF programs; if it may not load them, each unit has every device.
        command += ["--system-call-filter=bpf"]
        if not network:
            command += ["--private-network"]
        environment = {**os.environ, "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"}
        # A separate control group: machines in the same one stop each other's services.
        self._cgroup = os.path.join(_UNIFIED if os.path.isdir(_UNIFIED) else _CGROUPS, name)
        os.mkdir(self._cgroup)
        command = ["sh", "-c", 'echo $$ > "$0/cgroup.procs"; exec "$@"', self._cgroup, *command]
        with open(os.path.join(self._folder, "console"), "wb") as console:
            self._nspawn = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=console, stderr=console
            )
        try:
            self._init = wait_until(self._find_init, "the machine's process 1", _BOOT_S)
            wait_until(self._has_booted, "the machine's boot", _BOOT_S)
        except BaseException:
            self.stop()
            raise

    def _find_init(self) -> int:
        """Return the id of the machine's process 1 in this process namespace, or 0 if it does not exist yet."""
        if self._nspawn.poll() is not None:
            with open(os.path.join(self._folder, "console"), encoding="utf-8", errors="replace") as console:
                raise AssertionError(f"systemd-nspawn ended with {self._nspawn.returncode}: {console.read()[-2000:]}")
        listed = subprocess.run(["pgrep", "-P", str(self._nspawn.pid)], capture_output=True, text=True)
        for pid in map(int, listed.stdout.split()):
            try:
                with open(f"/proc/{pid}/comm", encoding="ascii", errors="replace") as file:
                    name = file.read().strip()
            except FileNotFoundError:
                continue  # nspawn's own process, which has just ended
            if name == "systemd":  # before that it is nspawn's own process, which prepares the root
                return pid
        return 0

    def _has_booted(self) -> bool:
        state = self.run("systemctl", "is-system-running", is_checked=False).stdout.strip()
        return state in ("running", "degraded")

    def run(
        self,
        *command: str,
        given: str = "",
        is_checked: bool = True,
        limit_s: float = LIMIT_S,
        user: str = "",
        environment: Mapping[str, str] | None = None,
        cwd: str = "/",
    ) -> Result:
        """Run a command in the machine as root or `user`, and return its result with output and errors as texts.

        Args:
            arguments: The command and its arguments.
            user: User of the machine.
            given: Standard input.
            is_checked: Raise AssertionError with the output unless the command ends with 0.
            cwd: Working folder in the machine.
        """
        variables = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root",
                     "LANG": "C.UTF-8", **(environment or {})}  # fmt: skip
        enter = ["nsenter", "--target", str(self._init), "--all", f"--wdns={cwd}", "--"]
        if user:
            enter += ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups", "--"]
        result = subprocess.run(
            [*enter, *command], input=given, capture_output=True, text=True, timeout=limit_s, env=variables
        )
        if is_checked and result.returncode:
            raise AssertionError(
                f"{' '.join(command)} ended with {result.returncode}:\n{result.stdout[-3000:]}{result.stderr[-3000:]}"
            )
        return result

    def sh(self, script: str, is_checked: bool = True, limit_s: float = LIMIT_S) -> Result:
        """Run a shell script in the machine as root."""
        return self.run("sh", "-ec", script, is_checked=is_checked, limit_s=limit_s)

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        """Write a file of the machine; missing folders are created."""
        self.run("install", "-D", "-m", f"{mode:o}", "/dev/stdin", path, given=text)

    def read(self, path: str) -> str:
        """Return the text of a file of the machine."""
        return self.run("cat", path).stdout

    def copy_program(self, folder: str = "/opt/pigeonpost", revision: str = "") -> None:
        """Copy the program to a folder of the machine, as a user copies the checkout.

        `revision` is a commit of the repository; by default the present files are copied.
        """
        self.run("mkdir", "-p", folder)
        if revision:
            packed = subprocess.run(["git", "archive", revision], cwd=ROOT, capture_output=True, check=True).stdout
        else:
            listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
            names = subprocess.run(listed, cwd=ROOT, capture_output=True, check=True).stdout
            there = b"\0".join(name for name in names.split(b"\0") if os.path.exists(os.path.join(ROOT.encode(), name)))
            pack = ["tar", "--create", "--null", "--files-from=-", "--owner=0", "--group=0"]
            packed = subprocess.run(pack, cwd=ROOT, input=there, capture_output=True, check=True).stdout
        unpack = ["nsenter", "--target", str(self._init), "--all", "--", "tar", "-C", folder, "--extract"]
        subprocess.run(unpack, input=packed, capture_output=True, check=True, timeout=LIMIT_S)

    def journal(self, unit: str) -> str:
        """Return the log of a unit."""
        return self.run("journalctl", "--no-pager", "--output=cat", f"--unit={unit}").stdout

    def wait_for_log(self, unit: str, text: str, limit_s: float = LIMIT_S) -> str:
        """Wait until a unit has logged a text, and return its log."""
        try:
            wait_until(lambda: text in self.journal(unit), f"{text!r} in the log of {unit}", limit_s)
        except AssertionError as error:
            status = self.run("systemctl", "status", "--no-pager", unit, is_checked=False).stdout
            raise AssertionError(f"{error}\n{status}\n{self.journal(unit)[-3000:]}") from None
        return self.journal(unit)

    def stop(self) -> None:
        """Power off and remove the machine; safe to call again."""
        if not os.path.exists(self._folder):
            return
        self._nspawn.terminate()  # a regular power-off
        try:
            self._nspawn.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._nspawn.kill()  # its processes end with it
            self._nspawn.wait()
        for folder, _, _ in os.walk(self._cgroup, topdown=False):
            with contextlib.suppress(OSError):  # a process that is just ending
                os.rmdir(folder)
        subprocess.run(["umount", "--lazy", self.root], check=False)
        shutil.rmtree(self._folder, ignore_errors=True)


def machine_for(test: type[unittest.TestCase], release: str, network: bool = False) -> Machine:
    """Return a booted machine for a class of tests. It is stopped after the last of them."""
    machine = Machine(release, network)
    test.addClassCleanup(machine.stop)
    return machine
