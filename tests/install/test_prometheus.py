"""Debian's Prometheus in its own network scrapes a server that requires a password, configured as in docs/web.md."""

import functools
import json
import os
import re
import subprocess
import unittest
import urllib.parse
import urllib.request

from tests.install import find_command, need_install
from tests.page_support import Node, StartedServer, control, for_class
from tests.support import LIMIT_S, ROOT, free_port, temp_folder, wait_until

HERE, THERE = "10.207.19.1", "10.207.19.2"  # the two ends of the cable between this machine and Prometheus'


def setUpModule():
    need_install(prometheus="prometheus", promtool="prometheus", ip="iproute2")


def blocks():
    """Return the configurations of docs/web.md, as a user copies them."""
    with open(os.path.join(ROOT, "docs", "web.md"), encoding="utf-8") as file:
        text = file.read()
    found = re.findall(r"^    scrape_configs:\n(?:(?:    .*)?\n)+", text, re.MULTILINE)
    return [re.sub(r"^    ", "", block, flags=re.MULTILINE) for block in found]


def run(*command):
    result = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S)
    if result.returncode:
        raise AssertionError(f"{' '.join(command)} ended with {result.returncode}: {result.stdout}{result.stderr}")
    return result.stdout


class Prometheus:
    """A Prometheus in the network namespace `network`, with this configuration."""

    def __init__(self, test, network, settings):
        folder = temp_folder(test)
        config = os.path.join(folder, "prometheus.yml")
        with open(config, "w", encoding="utf-8") as file:
            file.write(settings)
        run(find_command("promtool"), "check", "config", config)
        self._address = f"{THERE}:{free_port()}"
        command = [
            find_command("ip"), "netns", "exec", network, find_command("prometheus"), f"--config.file={config}",
            f"--storage.tsdb.path={folder}/data", f"--web.listen-address={self._address}",
        ]  # fmt: skip
        self._log = open(os.path.join(folder, "log"), "w+", encoding="utf-8")  # noqa: SIM115
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log)
        test.addCleanup(self._stop)

    def _stop(self):
        self._process.kill()
        self._process.wait()
        self._log.close()

    def ask(self, query):
        """Return the values of a query as texts; an empty list until Prometheus answers."""
        if self._process.poll() is not None:
            self._log.seek(0)
            raise AssertionError(f"Prometheus ended: {self._log.read()[-2000:]}")
        address = f"http://{self._address}/api/v1/query?query={urllib.parse.quote(query)}"
        try:
            with urllib.request.urlopen(address, timeout=LIMIT_S) as answer:
                found = json.load(answer)["data"]["result"]
        except OSError:  # it starts
            return []
        return [one["value"][1] for one in found]


class Scraped(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.network = f"pigeonpost-{os.getpid()}"
        ip = find_command("ip")
        here, there = f"pp{os.getpid() % 10**6}h", f"pp{os.getpid() % 10**6}t"
        run(ip, "netns", "add", cls.network)
        cls.addClassCleanup(run, ip, "netns", "delete", cls.network)  # its end of the cable goes with it
        run(ip, "link", "add", here, "type", "veth", "peer", "name", there, "netns", cls.network)
        run(ip, "address", "add", f"{HERE}/30", "dev", here)
        run(ip, "link", "set", here, "up")
        for command in (
            ["address", "add", f"{THERE}/30", "dev", there], ["link", "set", there, "up"], ["link", "set", "lo", "up"],
        ):  # fmt: skip
            run(ip, "-n", cls.network, *command)
        test = for_class(cls)
        node = Node(test)
        cls.server = StartedServer(test, "--node", node.at, "--web", f"{HERE}:{free_port()}")
        cls.page = "{}:{}".format(*cls.server.page)
        cls.control("password", said="correct horse\n")

    @classmethod
    def control(cls, *arguments, said=""):
        status, out, told = control(for_class(cls), "--data", cls.server.data, *arguments, said=said)
        if status:
            raise AssertionError(told)
        return out

    def scrape(self, block, token):
        settings = block.replace("SERVER:8080", self.page).replace("TOKEN", token).replace("15s", "1s")
        return Prometheus(self, self.network, settings)

    def test_by_bearer_token_and_by_basic_login(self):
        both = blocks()
        self.assertEqual(
            [("authorization" in one, "basic_auth" in one) for one in both], [(True, False), (False, True)]
        )
        for number, block in enumerate(both):
            prometheus = self.scrape(block, self.control("api-token", f"prometheus{number}").strip())
            query = 'pigeonpost_reading{node="basement",sensor="temperature",unit="°C"}'
            (value,) = wait_until(functools.partial(prometheus.ask, query), "a reading")
            self.assertTrue(-50 < float(value) < 100, value)
            self.assertEqual(prometheus.ask("up"), ["1"])
        wait_until(lambda: self.used(), "the use of a token")

    def used(self):
        """Return the list of tokens without the unused ones."""
        return "\n".join(line for line in self.control("api-tokens").splitlines() if "never used" not in line)

    def test_without_a_right_token_it_gets_nothing(self):
        prometheus = self.scrape(blocks()[0], "pp_" + "0" * 40)
        self.assertEqual(wait_until(lambda: prometheus.ask("up"), "a scrape"), ["0"])
        self.assertEqual(prometheus.ask("pigeonpost_info"), [])

    def test_promtool_finds_nothing_to_complain_about(self):
        token = self.control("api-token", "promtool").strip()
        wait_until(lambda: "pigeonpost_reading{" in self.metrics(token), "a reading")
        lint = subprocess.run(
            [find_command("promtool"), "check", "metrics"], input=self.metrics(token), capture_output=True, text=True,
            timeout=LIMIT_S,
        )  # fmt: skip
        self.assertEqual((lint.returncode, lint.stdout, lint.stderr), (0, "", ""))

    def metrics(self, token):
        return self.server.get("/metrics", {"Authorization": f"Bearer {token}"})[1]


if __name__ == "__main__":
    unittest.main()
