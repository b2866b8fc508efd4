"""A PostgreSQL and a Redis of the tests' own: started when first needed, killed and started at will, gone at the end.

Not the ones that may run on this machine: what is in those is somebody's. PIGEONPOST_TEST_POSTGRES names another
PostgreSQL to be used instead (its user may create databases); what kills a database still starts its own.
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
    """The library, or None where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


psycopg, redis = _library("psycopg"), _library("redis")

GIVEN_POSTGRES = os.environ.get("PIGEONPOST_TEST_POSTGRES", "")
_BINARIES = os.pathsep.join([*sorted(glob.glob("/usr/lib/postgresql/*/bin"), reverse=True), os.environ.get("PATH", "")])


def _lacking(what: str, package: str) -> None:
    """Skip, with the reason; in CI, fail."""
    if os.environ.get("CI"):
        raise AssertionError(f"{what} is not installed: sudo apt install {package}")
    raise unittest.SkipTest(f"{what} is not installed")


def need_postgres() -> None:
    """To be called in setUpModule."""
    if psycopg is None:
        raise unittest.SkipTest("psycopg is not installed for this Python")
    if not GIVEN_POSTGRES and shutil.which("initdb", path=_BINARIES) is None:
        _lacking("PostgreSQL", "postgresql")


def need_redis() -> None:
    """To be called in setUpModule."""
    if redis is None:
        raise unittest.SkipTest("redis-py is not installed for this Python")
    if shutil.which("redis-server") is None:
        _lacking("redis-server", "redis-server")


class Cluster:
    """A PostgreSQL in a folder of its own, durable as a real one. It is killed as a whole, as by a power cut."""

    def __init__(self) -> None:
        self.port = free_port()
        self.address = f"postgresql://postgres@127.0.0.1:{self.port}/postgres"
        self._folder = tempfile.mkdtemp(prefix="pigeonpost-postgres-")
        self._as_user: dict[str, Any] = {}
        if os.getuid() == 0:  # whom it refuses to run as
            shutil.chown(self._folder, "postgres", "postgres")
            self._as_user = {"user": "postgres", "group": "postgres", "extra_groups": []}
        self._data = os.path.join(self._folder, "data")
        initdb = [_binary("initdb"), "-D", self._data, "-A", "trust", "-U", "postgres", "-E", "UTF8", "--no-sync"]
        subprocess.run([*initdb, "--locale=C.UTF-8"], check=True, capture_output=True, cwd="/", **self._as_user)
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        """Returns when it can be reached."""
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
        if self._process.poll() is not None:  # the shared memory of those that were killed may not be gone yet
            self.launch()
        try:
            psycopg.connect(self.address, connect_timeout=2).close()
        except psycopg.Error:
            return False
        return True

    def kill(self) -> None:
        """kill -9 of all its processes: each that serves a connection is a session of its own."""
        assert self._process is not None
        pid = self._process.pid
        try:
            with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as children:
                everybody = [pid, *map(int, children.read().split())]
        except OSError:  # it has ended
            everybody = []
        for one in everybody:
            with contextlib.suppress(ProcessLookupError):
                os.kill(one, signal.SIGKILL)
        self._process.wait()

    def restart(self) -> None:
        """As `systemctl restart` does: connections are ended in the midst of what they do."""
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
    """The one that all tests of this run share."""
    if not _shared:
        _shared.append(Cluster())
        atexit.register(_shared[0].remove)
    return _shared[0]


class Database:
    """A database of a test class's own; `drop` ends it."""

    def __init__(self, cluster_address: str = "") -> None:
        self._server = cluster_address or GIVEN_POSTGRES or cluster().address
        self.name = f"pigeonpost_test_{random.SystemRandom().randrange(1 << 48):012x}"  # not by what a test has patched
        self._do(f"CREATE DATABASE {self.name} TEMPLATE template0 ENCODING 'UTF8'")
        parameters = {**psycopg.conninfo.conninfo_to_dict(self._server), "dbname": self.name}
        self.address = psycopg.conninfo.make_conninfo(**parameters)
        self.url = f"postgresql://{parameters.get('user', '')}@{parameters['host']}:{parameters['port']}/{self.name}"

    def connect(self) -> Any:
        """A connection of a person who looks into it, or of a saboteur."""
        db = psycopg.connect(self.address, autocommit=True)
        db.execute("SET search_path = pigeonpost")
        return db

    def do(self, sql: str, *arguments: Any) -> list[Any]:
        """What it answers to one statement."""
        with self.connect() as db:
            cursor = db.execute(sql, arguments or None)
            return cursor.fetchall() if cursor.description else []

    def cut(self) -> None:
        """End all connections to it, whatever they are doing."""
        self._do(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{self.name}'")

    def drop(self) -> None:
        self._do(f"DROP DATABASE {self.name} WITH (FORCE)")

    def _do(self, sql: str) -> None:
        with psycopg.connect(self._server, autocommit=True) as db:
            db.execute(sql)


class Redis:
    """A Redis of its own, in memory only; ends with the test."""

    def __init__(self, test: unittest.TestCase) -> None:
        self.port = free_port()
        self.address = f"redis://127.0.0.1:{self.port}/0"
        self._process: subprocess.Popen[bytes] | None = None
        test.addCleanup(self.stop)

    def start(self) -> Redis:
        """Returns when it can be reached; it knows nothing of what it knew before."""
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
        """It takes connections and answers nothing any more; `thaw` ends that."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)
