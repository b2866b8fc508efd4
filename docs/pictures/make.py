"""Program that draws the screenshots in this folder.

    python3 -m docs.pictures.make            # in the root of the checkout; needs Playwright and Chromium
    python3 -m docs.pictures.make FOLDER     # writes them to FOLDER

A server in this process shows one day of simulated values of the node `demo`. Its clock does not move, and local time
is UTC. Therefore the screenshots change only if the pages, the fonts or the browser change.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

from csvbuffer import CsvLog
from pigeonpost.auth.api_tokens import ApiTokens
from pigeonpost.auth.throttle import LoginThrottle
from pigeonpost.auth.users import Users
from pigeonpost.core.clock import Clock
from pigeonpost.core.faults import Faults
from pigeonpost.core.version import VERSION
from pigeonpost.link.samples import SampleBatch
from pigeonpost.server.disk_usage import DiskUsageMonitor
from pigeonpost.server.ingest import Ingestor
from pigeonpost.server.node_status import NodeState
from pigeonpost.storage.models import EpochCommit, HighWaterMark
from pigeonpost.storage.sqlite.store import SqliteStore
from pigeonpost.views.context import WebContext
from protocol import Sample
from webui import WebInterface

NOW_MS = 1_795_188_970_000  # 2026-11-20T15:36:10Z
DAY_MS, MINUTE_MS = 86_400_000, 60_000
LIMIT_MS = 60_000  # time limit for each action of the browser
PHONE = {"viewport": {"width": 360, "height": 740}, "is_mobile": True, "device_scale_factor": 2}
# file name: (address, options of the browser window)
PICTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "page.png": ("/", {"viewport": {"width": 1100, "height": 980}}),
    "dark.png": ("/", {"viewport": {"width": 1100, "height": 980}, "color_scheme": "dark"}),
    "node.png": ("/nodes/demo", {"viewport": {"width": 1100, "height": 1000}}),
    "phone.png": ("/", PHONE),
}
UNITS = {
    "temperature": "°C", "light": "counts", "cpu_temperature": "°C", "load": "",
    "memory_free": "MiB", "disk_free": "MiB",
}  # fmt: skip


class StoppedClock(Clock):
    """A clock whose date does not change, but whose waits take real time."""

    def wall_ms(self) -> int:
        return NOW_MS


class DemoLink:
    """Link to the node, as the pages read it. No node is contacted."""

    def __init__(self) -> None:
        self.state = NodeState("192.168.1.20:5003", "demo")
        self.state.connected, self.state.fault, self.state.on = True, "", True
        self.state.every_s, self.state.since_ms, self.state.checked_ms = 10.0, NOW_MS - 3 * DAY_MS, NOW_MS
        self.state.offset_ms, self.state.round_trip_ms, self.state.last_sent = 12, 4.2, "15:36:09"
        self.state.sensors = [
            {"name": name, "unit": unit} | ({"simulated": True} if name in ("temperature", "light") else {})
            for name, unit in UNITS.items()
        ]
        machine = {name: value for name, value in values_at(NOW_MS).items() if name not in ("temperature", "light")}
        self.state.details = {"version": VERSION, "held": 65_536, "slots": 65_536, "machine": machine}

    def ask(self, word: str, *args: Any, limit_s: float = 5.0) -> bool:
        """Return False, since there is no node to ask.

        Args:
            word: The command.
            *args: Its arguments.
            limit_s: Longest wait for the reply, in seconds.
        """
        return False


def values_at(time_ms: int) -> dict[str, float | None]:
    """Return the simulated readings at `time_ms` (milliseconds since 1970, UTC) by sensor.

    They depend only on the time.
    """
    turn = 2 * math.pi * (time_ms % DAY_MS) / DAY_MS
    minute = time_ms // MINUTE_MS
    wave = math.sin(minute / 7) + math.sin(minute / 2.3) / 2
    is_busy = minute % 360 < 12
    return {
        "temperature": round(19.5 - 2.5 * math.cos(turn - 0.6) + 0.15 * wave, 2),
        "light": max(0, round(420 - 400 * math.cos(turn) + 25 * wave)),
        "cpu_temperature": round(46 - 1.5 * math.cos(turn - 0.6) + 0.6 * wave + (6 if is_busy else 0), 1),
        "load": round(0.3 + 0.08 * wave + (0.9 if is_busy else 0), 2),
        "memory_free": 400 + round(6 * wave) - (40 if is_busy else 0),
        "disk_free": 24_400 - (time_ms - NOW_MS + DAY_MS) // MINUTE_MS // 8,
    }


def fill(store: SqliteStore) -> None:
    """Store one sample per minute in `store` for the 24 hours before NOW_MS.

    The last one is one second before NOW_MS.
    """
    times = range(NOW_MS - DAY_MS + MINUTE_MS - 1000, NOW_MS, MINUTE_MS)
    samples = [
        Sample(seq, time_ms, seq * MINUTE_MS, values_at(time_ms), {}, "") for seq, time_ms in enumerate(times, 1)
    ]
    epoch_commit = EpochCommit("demo", "0" * 16, "1" * 16, HighWaterMark(samples[-1].seq, samples[-1].up_ms))
    epoch_commit.units, epoch_commit.items = UNITS, [SampleBatch.of(samples)]
    with store.writing(()):
        store.put([epoch_commit], NOW_MS, None)


@contextlib.contextmanager
def served() -> Iterator[str]:
    """Serve the pages on a free port of this machine, and yield the address with the key that admits one browser."""
    with contextlib.ExitStack() as stack:
        data = tempfile.mkdtemp(prefix="pigeonpost-pictures-")
        stack.callback(shutil.rmtree, data, ignore_errors=True)
        clock = StoppedClock()
        store = SqliteStore(data)
        stack.callback(store.close)
        fill(store)
        csv = CsvLog(data, store, clock)
        stack.callback(csv.close)
        csv.start()
        links: list[Any] = [DemoLink()]
        app = WebContext(
            name="home", data=data, clock=clock, store=store, csv=csv,
            ingestor=Ingestor(store, csv, clock), links=links,
            users=Users(data), api_tokens=ApiTokens(data), control="",
            started_ms=NOW_MS - 3 * DAY_MS, names=(), stop=lambda reason: None,
            disk=DiskUsageMonitor(data, clock), faults=Faults(), throttle=LoginThrottle(clock),
        )  # fmt: skip
        web = WebInterface([("127.0.0.1", 0)], app)
        web.start()
        stack.callback(web.stop, 2.0)
        host, port = web.addresses[0]
        yield f"http://{host}:{port}/?key={web.first_key}"


def draw(folder: str, browser: Any) -> None:
    """Draw all PICTURES into `folder` with `browser`, a started browser of Playwright."""
    with served() as address:
        first = browser.new_context()
        first.new_page().goto(address)
        session = first.storage_state()
        first.close()
        for name, (path, options) in PICTURES.items():
            context = browser.new_context(base_url=address, storage_state=session, **options)
            context.set_default_timeout(LIMIT_MS)
            page = context.new_page()
            page.clock.set_fixed_time(NOW_MS / 1000)
            page.goto(path)
            for chart in page.locator(".charts img").all():
                chart.scroll_into_view_if_needed()
                page.wait_for_function("image => image.complete && image.naturalWidth", arg=chart.element_handle())
            page.evaluate("scrollTo(0, 0)")
            page.screenshot(path=os.path.join(folder, name))
            context.close()


def main() -> None:
    """Draw the screenshots into the folder in the first command-line argument, or into this folder."""
    from playwright.sync_api import sync_playwright

    os.environ["TZ"] = "UTC"
    time.tzset()
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        sys.exit("Chromium is not installed; run: sudo apt install chromium")
    with sync_playwright() as playwright:
        # As root, Chromium does not start in its sandbox. In containers, /dev/shm is too small for it.
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-dev-shm-usage"])
        draw(sys.argv[1] if len(sys.argv) > 1 else os.path.dirname(os.path.abspath(__file__)), browser)
        browser.close()


if __name__ == "__main__":
    main()
