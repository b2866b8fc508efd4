"""Prometheus with the files of deploy/prometheus scrapes a server that requires a password, in both formats."""

import http.server
import json
import os
import re
import subprocess
import threading
import unittest
import urllib.parse
import urllib.request

from tests.page_support import Server, control, for_class
from tests.programs import PATHS, RealProgram, need_programs
from tests.support import LIMIT_S, ROOT, free_port, temp_folder, wait_until

FOLDER = os.path.join(ROOT, "deploy", "prometheus")
RULES = os.path.join(FOLDER, "pigeonpost.rules.yml")


def setUpModule():
    need_programs("prometheus", "promtool")


def promtool(*arguments, said=""):
    """Run promtool, and return its exit status and what it printed."""
    done = subprocess.run(
        ["promtool", *arguments], input=said, capture_output=True, text=True, timeout=LIMIT_S,
        env={**os.environ, "PATH": PATHS},
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


class Forwarder(http.server.ThreadingHTTPServer):
    """Proxy that replaces the Accept header, and records the content types of the responses."""

    daemon_threads = True

    def __init__(self, test, target, accept):
        self.kinds = []
        kinds = self.kinds

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                headers = dict(self.headers.items()) | ({"Accept": accept} if accept else {})
                headers = {name: value for name, value in headers.items() if name.lower() != "host"}
                request = urllib.request.Request(f"http://{target}{self.path}", headers=headers)
                with urllib.request.urlopen(request, timeout=LIMIT_S) as answer:
                    body, kind, coding = answer.read(), answer.headers["Content-Type"], answer.headers.get(
                        "Content-Encoding", "")  # fmt: skip
                kinds.append((kind.rpartition(";")[0], coding))
                self.send_response(200)
                self.send_header("Content-Type", kind)
                if coding:
                    self.send_header("Content-Encoding", coding)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        test.addCleanup(self.server_close)
        test.addCleanup(self.shutdown)
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def place(self):
        return f"127.0.0.1:{self.server_port}"


class Rules(unittest.TestCase):
    def test_promtool_accepts_the_rules_and_their_unit_tests_pass(self):
        for arguments in (
            ("check", "rules", RULES),
            ("test", "rules", os.path.join(ROOT, "tests", "programs", "pigeonpost.rules.test.yml")),
        ):
            status, text = promtool(*arguments)
            self.assertEqual((status, "SUCCESS" in text), (0, True), text)


class Scraped(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        test = for_class(cls)
        data = temp_folder(test)
        control(test, "--data", data, "password", said="correct horse\n")
        status, out, told = control(test, "--data", data, "api-token", "prometheus")
        assert status == 0, told
        cls.token = out.strip()
        cls.server = Server(test, "--demo", data=data)
        cls.page = "{}:{}".format(*cls.server.page)

    def metrics(self, accept=""):
        return self.server.get("/metrics", {"Authorization": f"Bearer {self.token}", "Accept": accept})[1]

    def start(self, *more_targets):
        """Start Prometheus with the files of deploy/prometheus, and `more_targets` besides the server."""
        folder = temp_folder(self)
        with open(os.path.join(FOLDER, "prometheus.yml"), encoding="utf-8") as file:
            settings = file.read()
        targets = json.dumps([self.page, *more_targets])
        settings = settings.replace('["127.0.0.1:8080"]', targets).replace("127.0.0.1:8080", self.page)
        settings = settings.replace("interval: 15s", "interval: 1s")
        for name, text in (("prometheus.yml", settings), ("pigeonpost.token", self.token + "\n")):
            with open(os.path.join(folder, name), "w", encoding="utf-8") as file:
                file.write(text)
        with (
            open(RULES, encoding="utf-8") as rules,
            open(os.path.join(folder, "pigeonpost.rules.yml"), "w", encoding="utf-8") as file,
        ):
            file.write(rules.read())
        config = os.path.join(folder, "prometheus.yml")
        self.assertEqual(promtool("check", "config", config)[0], 0)
        self.address = f"127.0.0.1:{free_port()}"
        command = ["prometheus", f"--config.file={config}", "--storage.tsdb.path={folder}/data",
                   f"--web.listen-address={self.address}"]  # fmt: skip
        return RealProgram(self, command, lambda: self.ask("status/config")).start()

    def ask(self, path):
        with urllib.request.urlopen(f"http://{self.address}/api/v1/{path}", timeout=LIMIT_S) as answer:
            return json.load(answer)["data"]

    def values(self, query):
        found = self.ask(f"query?query={urllib.parse.quote(query)}")["result"]
        return {one["metric"].get("instance", ""): float(one["value"][1]) for one in found}

    def discovered(self):
        """Return the labels of the targets that the server has reported."""
        targets = self.ask("targets")["activeTargets"]
        return [one["labels"] for one in targets if one["labels"]["job"] == "nodes"]

    def test_both_formats_are_scraped_and_the_nodes_are_discovered(self):
        text = Forwarder(self, self.page, "text/plain;version=0.0.4")
        opened = Forwarder(self, self.page, "")
        self.start(text.place, opened.place)
        everyone = {self.page, text.place, opened.place}
        query = 'pigeonpost_reading{node="demo",sensor="temperature",unit="°C"}'
        wait_until(lambda: self.values(query).keys() == everyone, "a reading of each target")
        self.assertEqual(self.values('up{job="pigeonpost"}'), dict.fromkeys(everyone, 1))
        self.assertEqual(set(text.kinds), {("text/plain; version=0.0.4", "gzip")})
        self.assertEqual(set(opened.kinds), {("application/openmetrics-text; version=1.0.0", "gzip")})
        for name in ("pigeonpost_samples_stored_total", "process_cpu_seconds_total", "pigeonpost_ingest_queue_samples"):
            self.assertEqual(self.values(name).keys() & everyone, everyone, name)
        found = wait_until(self.discovered, "the discovery of the nodes")
        self.assertEqual(found, [{"instance": "127.0.0.1:9100", "job": "nodes", "node": "demo"}])
        rules = [rule for group in self.ask("rules")["groups"] for rule in group["rules"]]
        self.assertEqual(len(rules), 13)
        wait_until(
            lambda: {rule["health"] for group in self.ask("rules")["groups"] for rule in group["rules"]} == {"ok"},
            "an evaluation of each rule",
        )

    def test_every_metric_in_a_rule_exists(self):
        wait_until(lambda: "pigeonpost_reading{" in self.metrics(), "a reading")
        with open(RULES, encoding="utf-8") as file:
            names = set(re.findall(r"pigeonpost_[a-z_]+", re.sub(r"(?m)^ +(summary|description):.*", "", file.read())))
        # The description of a metric is there without values.
        missing = {name for name in names if f"# TYPE {name} " not in self.metrics()}
        self.assertEqual(missing, {"pigeonpost_backup_timestamp_seconds"})  # only with [backup]

    def test_promtool_finds_nothing_to_complain_about(self):
        wait_until(lambda: "pigeonpost_reading{" in self.metrics(), "a reading")
        self.assertEqual(promtool("check", "metrics", said=self.metrics()), (0, ""))


if __name__ == "__main__":
    unittest.main()
