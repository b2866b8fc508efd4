"""A machine with Docker, simulated on this one, and a neighbour on the same network.

It has its own namespaces for network, mounts, /dev and host name; Podman with Docker's socket; and Docker's own Compose
from Debian's package. A second network namespace is the neighbour. The image is built on a root made by debootstrap, so
that no registry is needed.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping

from tests.install.roots import FOLDER, root_of
from tests.support import LIMIT_S, ROOT, wait_until

Result = subprocess.CompletedProcess[str]
IMAGE = "localhost/pigeonpost"
EXTRA = "python3-paho-mqtt"  # the smallest one in docs/containers.md
ADDRESS, NEIGHBOUR = "192.0.2.1", "192.0.2.2"  # TEST-NET-1 (RFC 5737), used only in these namespaces
NAME = "raspberrypi"
_BASE = "localhost/debian:trixie-slim"
_BUILD_S = 300.0
# Parts of a root that the base image does not need; it is copied twice.
_LEFT_OUT = ("./var/cache", "./var/lib/apt/lists", "./usr/share/doc", "./usr/share/locale", "./usr/share/man",
             "./usr/lib/modules", "./dev")  # fmt: skip
# Without CAP_SYS_RESOURCE limits cannot be raised, and Podman's defaults are higher than those of a sandbox.
_LIMITS = 'default_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]'
_OVERRIDE = "services:\n" + "".join(
    f"  {name}:\n    ulimits: {{nofile: {{soft: 4096, hard: 4096}}, nproc: {{soft: 4096, hard: 4096}}}}\n"
    for name in ("server", "node")
)
# Its own /dev, for device nodes; and no second cgroup hierarchy, which crun refuses.
_SET_UP = f"""
hostname {NAME}
ip link set lo up
dev=$(mktemp -d)
mount -t tmpfs tmpfs "$dev"
cp -ax /dev/. "$dev" 2>/dev/null || true
mount --bind /dev/pts "$dev/pts"
mount --move "$dev" /dev
rmdir "$dev"
if mountpoint -q /sys/fs/cgroup/unified; then umount /sys/fs/cgroup/unified; fi
"""
_CONNECT = f"""
ip link add near type veth peer name far netns /proc/$1/ns/net
ip addr add {ADDRESS}/24 dev near
ip link set near up
ip route add default via {NEIGHBOUR}
"""
_FAR = f"ip link set lo up; ip addr add {NEIGHBOUR}/24 dev far; ip link set far up"


class ContainerHost:
    """A machine with Docker, and its neighbour. It ends with the module that made it.

    host = ContainerHost()
    unittest.addModuleCleanup(host.stop)
    host.build()
    host.compose("up", "--detach", "server", variables={"TZ": "Europe/Vienna"})
    host.neighbour("curl", f"http://{ADDRESS}/healthz")
    """

    def __init__(self) -> None:
        self.folder = tempfile.mkdtemp(prefix="pigeonpost-containers-", dir="/var/tmp")
        self._processes: list[subprocess.Popen[bytes]] = []
        self._mounted = False
        try:
            own = self._hold("--mount", "--propagation=private", "--net", "--uts")
            other = self._hold("--net")
            self._enter = ["nsenter", f"--target={own}", "--mount", "--net", "--uts"]
            self._enter_other = ["nsenter", f"--target={other}", "--net"]
            self._enter_build = ["nsenter", f"--target={own}", "--mount"]  # the network of this machine
            with open(f"{self.folder}/containers.conf", "w", encoding="ascii") as file:
                file.write(f"[containers]\n{_LIMITS}\n")
            with open(f"{self.folder}/limits.yml", "w", encoding="ascii") as file:
                file.write(_OVERRIDE)
            self._environment = {
                **os.environ, "CONTAINERS_CONF": f"{self.folder}/containers.conf",
                "DOCKER_HOST": f"unix://{self.folder}/docker.sock",
            }  # fmt: skip
            self.sh(_SET_UP)
            self.sh(_CONNECT, str(other))
            self.neighbour("sh", "-ec", _FAR)
            self._compose = docker_compose()
        except BaseException:
            self.stop()
            raise

    def _hold(self, *namespaces: str) -> int:
        """Start a process that holds new namespaces, and return its id."""
        process = subprocess.Popen(["unshare", *namespaces, "sleep", "infinity"])
        self._processes.append(process)

        def is_there() -> bool:
            return _network_of(process.pid) != _network_of("self")

        wait_until(is_there, "new namespaces")
        return process.pid

    # ------------------------------------------------------------------------------------------- its commands

    def run(
        self, *command: str, given: str = "", is_checked: bool = True, limit_s: float = LIMIT_S,
        variables: Mapping[str, str] | None = None, enter: list[str] | None = None, cwd: str = "/",
    ) -> Result:  # fmt: skip
        """Run a command on the machine and return its result.

        Raises AssertionError with its output unless it ends with 0.
        """
        place = [*(self._enter if enter is None else enter), f"--wdns={cwd}", "--"]
        result = subprocess.run(
            [*place, *command], input=given, capture_output=True, text=True, timeout=limit_s,
            env={**self._environment, **(variables or {})},
        )  # fmt: skip
        if is_checked and result.returncode:
            output = f"{result.stdout[-3000:]}{result.stderr[-3000:]}"
            raise AssertionError(f"{' '.join(command)} ended with {result.returncode}:\n{output}")
        return result

    def sh(self, script: str, *arguments: str) -> str:
        """Run a shell script on the machine and return its output."""
        return self.run("sh", "-ec", script, "sh", *arguments).stdout

    def neighbour(self, *command: str, is_checked: bool = True) -> Result:
        """Run a command on the neighbour, which shares only the network."""
        return self.run(*command, is_checked=is_checked, enter=self._enter_other)

    def start_on_neighbour(self, *command: str, **variables: str) -> subprocess.Popen[bytes]:
        """Start a program on the neighbour. The caller ends it."""
        environment = {**self._environment, "PYTHONDONTWRITEBYTECODE": "1", **variables}
        quiet = subprocess.DEVNULL
        return subprocess.Popen([*self._enter_other, "--", *command], env=environment, stdout=quiet, stderr=quiet)

    def podman(self, *command: str, given: str = "", is_checked: bool = True, limit_s: float = LIMIT_S) -> Result:
        """Run `podman`, which replaces `docker`."""
        return self.run(*self._podman(), *command, given=given, is_checked=is_checked, limit_s=limit_s)

    def compose(
        self, *command: str, given: str = "", variables: Mapping[str, str] | None = None, env_file: str = "",
        cwd: str = "/",
    ) -> Result:  # fmt: skip
        """Run `docker compose` with docker-compose.yml; `variables` are those of the shell, or of `env_file`."""
        files = ["--file", f"{ROOT}/docker-compose.yml", "--file", f"{self.folder}/limits.yml"]
        project = ["--project-name", "pigeonpost", "--progress", "quiet"]
        more = ["--env-file", env_file] if env_file else []
        return self.run(self._compose, *files, *project, *more, *command, given=given, variables=variables, cwd=cwd)

    def _podman(self) -> list[str]:
        # /run is shared with this machine: hide the containers of other tests.
        storage = [f"--root={self.folder}/storage", f"--runroot={self.folder}/run", f"--tmpdir={self.folder}/tmp"]
        return ["podman", "--log-level=fatal", "--storage-driver=overlay", *storage]

    # ------------------------------------------------------------------------------------------------ its parts

    def build(self) -> None:
        """Build the image from the Dockerfile with the names that Compose expects, and start Docker."""
        base = f"{self.folder}/base.tar"
        left_out = [f"--exclude={path}/*" for path in _LEFT_OUT]
        subprocess.run(["tar", "-C", root_of("trixie"), *left_out, "-cf", base, "."], check=True, timeout=_BUILD_S)
        self.podman("import", base, _BASE, limit_s=_BUILD_S)
        os.unlink(base)
        tags = [f"--tag={name}" for name in (IMAGE, "pigeonpost-server", "pigeonpost-node")]
        arguments = [f"--build-arg=BASE={_BASE}", f"--build-arg=EXTRA={EXTRA}"]
        build = ["build", "--format=docker", "--network=host", *arguments, *tags, ROOT]
        self.run(*self._podman(), *build, limit_s=_BUILD_S, enter=self._enter_build)
        service = [
            *self._enter,
            "--",
            *self._podman(),
            "system",
            "service",
            "--time=0",
            self._environment["DOCKER_HOST"],
        ]
        with open(f"{self.folder}/service", "wb") as log:
            self._processes.append(subprocess.Popen(service, env=self._environment, stdout=log, stderr=log))
        wait_until(lambda: os.path.exists(f"{self.folder}/docker.sock"), "Docker's socket")

    def wait_for_log(self, container: str, text: str) -> str:
        """Wait until a container has logged a text; return its complete log."""

        def logged() -> str:
            result = self.podman("logs", container, is_checked=False)
            return result.stdout + result.stderr

        def is_over() -> bool:
            state = self.podman("inspect", "--format={{.State.Status}}", container, is_checked=False).stdout
            return state.strip() in ("exited", "stopped", "")

        def is_logged() -> bool:
            over = is_over()
            if text in logged():
                return True
            if over:
                raise AssertionError(f"it ended without {text!r} in the log of {container}")
            return False

        try:
            wait_until(is_logged, f"{text!r} in the log of {container}")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{logged()[-3000:]}") from None
        return logged()

    def _inhabitants(self) -> list[int]:
        """Return the ids of all processes in the network namespaces of the two machines."""
        ours = {_network_of(process.pid) for process in self._processes} - {_network_of("self"), ""}
        return [int(pid) for pid in os.listdir("/proc") if pid.isdigit() and _network_of(pid) in ours]

    def stop(self) -> None:
        """Remove the containers and everything else of the machine."""
        if os.path.exists(f"{self.folder}/storage"):
            self.podman("rm", "--all", "--force", "--time=0", "--volumes", is_checked=False)
        for pid in self._inhabitants():  # Podman's monitors run for minutes after a `docker exec`
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass  # it has just ended
        for process in self._processes:
            process.kill()
            process.wait()
        with open("/proc/mounts", encoding="utf-8") as file:
            mounts = [line.split()[1] for line in file if self.folder in line]
        for path in reversed(mounts):
            subprocess.run(["umount", "--lazy", path], check=False)
        shutil.rmtree(self.folder, ignore_errors=True)


def _network_of(pid: int | str) -> str:
    """Return the network namespace of a process, or an empty string if it has ended."""
    try:
        return os.readlink(f"/proc/{pid}/ns/net")
    except OSError:
        return ""


def docker_compose() -> str:
    """Return the path of the `docker compose` program of Debian trixie, which is Docker's with compose-go."""
    folder = os.path.join(FOLDER, "docker-compose")
    program = f"{folder}/usr/libexec/docker/cli-plugins/docker-compose"
    root = root_of("trixie")
    with open(f"{folder}.lock", "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not os.path.exists(program):
            _download_compose(root, folder)
    return program


def _download_compose(root: str, folder: str) -> None:
    """Download the package with the apt of a root, in a layer on top of it, and unpack it."""
    with tempfile.TemporaryDirectory(prefix="pigeonpost-compose-", dir="/var/tmp") as place:
        for name in ("upper", "work", "root"):
            os.mkdir(f"{place}/{name}")
        script = f"""
mount -t overlay overlay -o lowerdir={root},upperdir={place}/upper,workdir={place}/work {place}/root
cat /etc/resolv.conf >{place}/root/etc/resolv.conf
cd {place}/root
chroot . sh -ec 'apt-get update -qq; cd /tmp; apt-get download -qq docker-compose' >&2
dpkg -x tmp/docker-compose_*.deb {folder}.unpacked
mv {folder}.unpacked {folder}
"""
        subprocess.run(["unshare", "--mount", "sh", "-ec", script], check=True, timeout=_BUILD_S)
