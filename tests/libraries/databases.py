"""PostgreSQL and Redis servers for tests: started when needed, killed and restarted by tests, removed at the end.

Servers that are already running on this machine are not used, because their data belongs to others.
PIGEONPOST_TEST_POSTGRES contains the address of a PostgreSQL to use instead. Its user must be allowed to create
databases. Tests that kill a database always start a separate one.
"""

from __future__ import annotations

import atexit
import contextlib
import glob
import importlib
import os
import random
import shutil
import signal
import subprocess
import tempfile
import unittest
from typing import Any

from tests.support import LIMIT_S, free_port, wait_until


def _library(name: str) -> Any:
    """Return the library, or None if it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


psycopg, redis = _library("psycopg"), _library("redis")

GIVEN_POSTGRES = os.environ.get("PIGEONPOST_TEST_POSTGRES", "")
_BINARIES = os.pathsep.join([*sorted(glob.glob("/usr/lib/postgresql/*/bin"), reverse=True), os.environ.get("PATH", "")])


def _lacking(what: str, package: str) -> None:
    """Skip the tests with the reason; in CI, fail."""
    if os.environ.get("CI"):
        raise AssertionError(f"{what} is not installed: sudo apt install {package}")
    raise unittest.SkipTest(f"{what} is not installed")


def need_postgres() -> None:
    """Skip the tests if psycopg or PostgreSQL is missing. To be called in setUpModule."""
    if psycopg is None:
        raise unittest.SkipTest("psycopg is not installed for this Python")
    if not GIVEN_POSTGRES and shutil.which("initdb", path=_BINARIES) is None:
        _lacking("PostgreSQL", "postgresql")


def need_redis() -> None:
    """Skip the tests if redis-py or Redis is missing. To be called in setUpModule."""
    if redis is None:
        raise unittest.SkipTest("redis-py is not installed for this Python")
    if shutil.which("redis-server") is None:
        _lacking("redis-server", "redis-server")


class Cluster:
    """PostgreSQL in a separate folder, with full durability. `kill` kills all its processes, like a power cut."""

    def __init__(self) -> None:
        self.port = free_port()
        self.address = f"postgresql://postgres@127.0.0.1:{self.port}/postgres"
        self._folder = tempfile.mkdtemp(prefix="pigeonpost-postgres-")
        self._as_user: dict[str, Any] = {}
        if os.getuid() == 0:  # PostgreSQL refuses to run as root
            shutil.chown(self._folder, "postgres", "postgres")
            self._as_user = {"user": "postgres", "group": "postgres", "extra_groups": []}
        self._data = os.path.join(self._folder, "data")
        initdb = [_binary("initdb"), "-D", self._data, "-A", "trust", "-U", "postgres", "-E", "UTF8", "--no-sync"]
        subprocess.run([*initdb, "--locale=C.UTF-8"], check=True, capture_output=True, cwd="/", **self._as_user)
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        """Start PostgreSQL, and return when it can be reached."""
        self.launch()
        wait_until(self._answers, "PostgreSQL answers", 2 * LIMIT_S)

    def launch(self) -> None:
        options = ("-c", "listen_addresses=127.0.0.1", "-c", f"unix_socket_directories={self._folder}")
        with open(os.path.join(self._folder, "log"), "ab") as log:
            self._process = subprocess.Popen(
                [_binary("postgres"), "-D", self._data, "-p", str(self.port), *options],
                stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True, cwd="/", **self._as_user,
            )  # fmt: skip

    def _answers(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:  # the shared memory of killed processes may still exist
            self.launch()
        try:
            psycopg.connect(self.address, connect_timeout=2).close()
        except psycopg.Error:
            return False
        return True

    def kill(self) -> None:
        """Kill all its processes with SIGKILL. Those that serve connections have separate sessions."""
        assert self._process is not None
        pid = self._process.pid
        try:
            with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as children:
                processes = [pid, *map(int, children.read().split())]
        except OSError:  # it has ended already
            processes = []
        for one in processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(one, signal.SIGKILL)
        self._process.wait()

    def restart(self) -> None:
        """Restart it like `systemctl restart`, which ends connections during their queries."""
        assert self._process is not None
        self._process.send_signal(signal.SIGINT)
        self._process.wait(LIMIT_S)
        self.start()

    def remove(self) -> None:
        self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)


def _binary(name: str) -> str:
    found = shutil.which(name, path=_BINARIES)
    assert found, name
    return found


_shared: list[Cluster] = []


def cluster() -> Cluster:
    """Return the cluster that all tests of this run share."""
    if not _shared:
        _shared.append(Cluster())
        atexit.register(_shared[0].remove)
    return _shared[0]


class Database:
    """Database of one test class. `drop` removes it."""

    def __init__(self, cluster_address: str = "") -> None:
        self._server = cluster_address or GIVEN_POSTGRES or cluster().address
        self.name = (
            f"pigeonpost_test_{random.SystemRandom().randrange(1 << 48):012x}"  # a test may have patched `random`
        )
        self._do(f"CREATE DATABASE {self.name} TEMPLATE template0 ENCODING 'UTF8'")
        parameters = {**psycopg.conninfo.conninfo_to_dict(self._server), "dbname": self.name}
        self.address = psycopg.conninfo.make_conninfo(**parameters)
        self.url = f"postgresql://{parameters.get('user', '')}@{parameters['host']}:{parameters['port']}/{self.name}"

    def connect(self) -> Any:
        """Return a connection with which a test reads or manipulates the database."""
        db = psycopg.connect(self.address, autocommit=True)
        db.execute("SET search_path = pigeonpost")
        return db

    def do(self, sql: str, *arguments: Any) -> list[Any]:
        """Execute one statement, and return its rows."""
        with self.connect() as db:
            cursor = db.execute(sql, arguments or None)
            return cursor.fetchall() if cursor.description else []

    def cut(self) -> None:
        """Terminate all connections to the database."""
        self._do(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{self.name}'")

    def drop(self) -> None:
        self._do(f"DROP DATABASE {self.name} WITH (FORCE)")

    def _do(self, sql: str) -> None:
        with psycopg.connect(self._server, autocommit=True) as db:
            db.execute(sql)


class Redis:
    """Redis server, in memory only. It is stopped at the end of the test."""

    def __init__(self, test: unittest.TestCase) -> None:
        self.port = free_port()
        self.address = f"redis://127.0.0.1:{self.port}/0"
        self._process: subprocess.Popen[bytes] | None = None
        test.addCleanup(self.stop)

    def start(self) -> Redis:
        """Start an empty Redis, and return when it can be reached."""
        self._process = subprocess.Popen(
            ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/",
        )  # fmt: skip
        wait_until(self._answers, "Redis answers")
        return self

    def _answers(self) -> bool:
        try:
            with redis.Redis(port=self.port) as client:
                return bool(client.ping())
        except redis.RedisError:
            return False

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def freeze(self) -> None:
        """Let it accept connections without responding, until `thaw`."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)
