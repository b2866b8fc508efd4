"""Formats of the metrics: text 0.0.4 and OpenMetrics, compression, and values that would invalidate a scrape."""

import gzip
import unittest

from pigeonpost.http.message import Request
from pigeonpost.views.exposition import Metric, metrics_response

# Accept headers of Prometheus 2.42, 2.53 and 3.0.
ACCEPT_2 = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75," \
           "text/plain;version=0.0.4;q=0.5,*/*;q=0.1"  # fmt: skip
ACCEPT_3 = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6," \
           "application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4," \
           "text/plain;version=0.0.4;q=0.3,*/*;q=0.2"  # fmt: skip
METRICS = (
    Metric("free_bytes", "gauge", "Free space.", [({}, 5)]),
    Metric("done_total", "counter", "Finished.", [({"name": 'a"b\\c\nd'}, 2), ({"name": "e"}, None)]),
    Metric("cpu_seconds_total", "counter", "Time.", [({}, 0.5)], prefix="process_"),
)


def answer(accept="", encoding="", metrics=METRICS):
    return metrics_response(Request("GET", "/metrics", "1.1", {"accept": accept, "accept-encoding": encoding}), metrics)


class Formats(unittest.TestCase):
    def test_text_is_the_default(self):
        found = answer()
        self.assertEqual(found.kind, "text/plain; version=0.0.4; charset=utf-8")
        self.assertEqual(found.body.decode().splitlines(), [
            "# HELP pigeonpost_free_bytes Free space.", "# TYPE pigeonpost_free_bytes gauge", "pigeonpost_free_bytes 5",
            "# HELP pigeonpost_done_total Finished.", "# TYPE pigeonpost_done_total counter",
            r'pigeonpost_done_total{name="a\"b\\c\nd"} 2',
            "# HELP process_cpu_seconds_total Time.", "# TYPE process_cpu_seconds_total counter",
            "process_cpu_seconds_total 0.5",
        ])  # fmt: skip

    def test_openmetrics_names_families_of_counters_without_total_and_has_units(self):
        found = answer(ACCEPT_2)
        self.assertEqual(found.kind, "application/openmetrics-text; version=1.0.0; charset=utf-8")
        self.assertEqual(found.body.decode().splitlines(), [
            "# HELP pigeonpost_free_bytes Free space.", "# TYPE pigeonpost_free_bytes gauge",
            "# UNIT pigeonpost_free_bytes bytes", "pigeonpost_free_bytes 5",
            "# HELP pigeonpost_done Finished.", "# TYPE pigeonpost_done counter",
            r'pigeonpost_done_total{name="a\"b\\c\nd"} 2',
            "# HELP process_cpu_seconds Time.", "# TYPE process_cpu_seconds counter",
            "# UNIT process_cpu_seconds seconds", "process_cpu_seconds_total 0.5", "# EOF",
        ])  # fmt: skip

    def test_format_is_the_one_that_the_client_prefers(self):
        for accept, is_open in (
            (ACCEPT_2, True), (ACCEPT_3, True), ("application/openmetrics-text", True), ("*/*", False),
            ("text/plain", False), ("application/openmetrics-text;q=0", False), ("text/html,*/*;q=0.8", False),
            ("application/openmetrics-text; q=0.5, text/plain", False), (",;,;;=", False),
            ("application/openmetrics-text;version=0.0.1", False), ("application/openmetrics-text;q=x", False),
        ):  # fmt: skip
            with self.subTest(accept):
                self.assertEqual(answer(accept).body.endswith(b"\n# EOF\n"), is_open)

    def test_response_is_compressed_if_the_client_accepts_gzip(self):
        long = [Metric("reading", "gauge", "Values.", [({"node": f"n{k}"}, k) for k in range(100)])]
        plain, zipped = answer(metrics=long), answer(encoding="deflate, gzip;q=0.5", metrics=long)
        self.assertEqual(gzip.decompress(zipped.body), plain.body)
        self.assertEqual(zipped.headers["Content-Encoding"], "gzip")
        self.assertLess(len(zipped.body), len(plain.body) / 3)
        for encoding in ("", "br", "gzip;q=0", "identity"):
            self.assertEqual(answer(encoding=encoding, metrics=long).body, plain.body, encoding)
        self.assertNotIn("Content-Encoding", answer(encoding="gzip").headers)  # too small
        huge = [Metric("reading", "gauge", "Values.", [({"node": "n" * (5 << 20)}, 1)])]
        self.assertNotIn("Content-Encoding", answer(encoding="gzip", metrics=huge).headers)

    def test_repeated_labels_are_left_out(self):
        repeated = [Metric("backlog", "gauge", "Items.", [({"name": "a"}, 1), ({"name": "a"}, 2), ({"name": "b"}, 3)])]
        self.assertEqual(answer(metrics=repeated).body.decode().splitlines()[2:], [
            'pigeonpost_backlog{name="a"} 1', 'pigeonpost_backlog{name="b"} 3',
        ])  # fmt: skip

    def test_special_numbers_are_written_as_the_formats_require(self):
        values = [({"a": str(k)}, value) for k, value in enumerate((float("nan"), float("inf"), -float("inf"), 1e300))]
        lines = answer(metrics=[Metric("x", "gauge", "X.", values)]).body.decode().splitlines()[2:]
        self.assertEqual([line.partition(" ")[2] for line in lines], ["NaN", "+Inf", "-Inf", "1e+300"])

    def test_half_a_surrogate_pair_does_not_break_the_response(self):
        self.assertIn(b'{node="?"}', answer(metrics=[Metric("x", "gauge", "X.", [({"node": "\ud800"}, 1)])]).body)


if __name__ == "__main__":
    unittest.main()
