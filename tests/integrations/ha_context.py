"""Server with one node, without threads and files, for the tests of the parts for Home Assistant."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from pigeonpost.core.clock import FakeClock
from pigeonpost.core.faults import Faults
from pigeonpost.link.samples import SampleBatch
from pigeonpost.server.latest_samples import LatestSample
from pigeonpost.server.node_status import NodeState
from pigeonpost.storage.models import NOTHING, EpochCommit
from protocol import Sample
from tests.support import EPOCH, temp_folder

SETTINGS = {
    ("mqtt", "host"): "broker", ("mqtt", "port"): 0, ("mqtt", "tls"): False,
    ("home_assistant", "discovery"): True, ("home_assistant", "controls"): False,
    ("home_assistant", "prefix"): "homeassistant", ("home_assistant", "url"): "http://127.0.0.1:1",
    ("home_assistant", "token"): "secret", ("alerts", "url"): "http://pi.local:8080/",
}  # fmt: skip


class Names:
    """Current names of nodes: the part of NodeRegister that is used."""

    def __init__(self) -> None:
        self.renamed: dict[str, str] = {}
        self.retired: set[str] = set()
        self.labels: dict[tuple[str, str], str] = {}
        self.on_rename: list[Any] = []

    def current(self, name: str) -> str:
        return self.renamed.get(name, name)

    def retired_ms(self, name: str) -> int | None:
        return 1 if name in self.retired else None

    def label(self, node: str, sensor: str) -> str:
        return self.labels.get((node, sensor), "")


class Broker:
    """Replacement of MqttConnection, which delivers to `home`, a FakeHomeAssistant, while it is connected."""

    def __init__(self, home: Any, clock: FakeClock) -> None:
        self.home, self.clock = home, clock
        self.messages: list[tuple[str, bytes, int, bool]] = []
        self.place, self.fault, self.connected, self.is_acknowledging = "broker:1883", "", True, True
        self.topics: list[str] = []
        self.will: Any = None

    def connection(self, settings: Any, name: str, topics: Any, on_message: Any, on_change: Any, **more: Any) -> Broker:
        self.topics, self.will = list(topics), more["will"]
        self.on_message, self.on_change, self.on_retained = on_message, on_change, more["on_retained"]
        self.on_published = more["on_published"]
        return self

    def start(self) -> None:
        pass

    def stop(self, limit_s: float) -> None:
        return None

    def publish(self, topic: str, payload: bytes, *, is_retained: bool = False, qos: int = 1) -> int:
        self.messages.append((topic, payload, qos, is_retained))
        self.home.receive(topic, payload, self.clock.monotonic(), is_retained)
        if self.is_acknowledging:
            self.on_published(len(self.messages), "")
        return len(self.messages)

    def acknowledge_all(self) -> None:
        """Acknowledge all messages, also those that were not acknowledged at once."""
        self.is_acknowledging = True
        for number in range(len(self.messages)):
            self.on_published(number + 1, "")


class Link:
    """Link to a node, which answers every command."""

    def __init__(self, name: str) -> None:
        self.state = NodeState("10.0.0.5:5003", name)
        self.state.connected, self.state.every_s, self.state.on = True, 10.0, True
        self.asked: list[tuple[Any, ...]] = []

    def ask(self, word: str, *args: bool, limit_s: float = 5.0) -> bool:
        self.asked.append((word, *args))
        return True


def make_context(test: Any, **settings: Any) -> Any:
    """Return a context with a clock that stands still, and no nodes."""
    clock = FakeClock()
    values = {**SETTINGS, **{("home_assistant", key): value for key, value in settings.items()}}
    ingestor = SimpleNamespace(
        latest={}, received_s={}, commit_s=1.0, fault="", stored=0, subscribers=[],
        subscribe=lambda subscriber: ingestor.subscribers.append(subscriber),
    )  # fmt: skip
    store = SimpleNamespace(nodes=list)
    return SimpleNamespace(
        name="home", data=temp_folder(test), clock=clock, settings=values, store=store, ingestor=ingestor, links=[],
        faults=Faults(), names=Names(),
    )  # fmt: skip


def receive(context: Any, node: str, values: dict[str, Any], units: dict[str, str], age_s: float = 0.0) -> EpochCommit:
    """Store a sample of this age, and call the subscribers."""
    clock = context.clock
    time_ms = clock.wall_ms() - round(age_s * 1000)
    sample = Sample(1, time_ms, clock.up_ms(), values, {}, "")
    context.ingestor.latest[node] = LatestSample(sample, units, clock.wall_ms(), clock.monotonic())
    context.ingestor.received_s[node] = clock.monotonic()
    commit = EpochCommit(node, "00000000000000ab", EPOCH, NOTHING)
    commit.units = units
    commit.items = [SampleBatch.of([sample])]
    for subscriber in context.ingestor.subscribers:
        subscriber([commit])
    return commit
