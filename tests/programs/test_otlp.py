"""OTLP as JSON, decoded by the definitions of the OpenTelemetry project: an unknown key or a wrong type is an error."""

import os
import types
import unittest

from pigeonpost.integrations.contract import RefusedData
from tests.http_servers import Server
from tests.integrations.forwarding import batch_of, body_of, make_target, some
from tests.programs import need_programs
from tests.support import WALL_MS

try:
    from google.protobuf import json_format
    from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
        ExportMetricsPartialSuccess,
        ExportMetricsServiceRequest,
        ExportMetricsServiceResponse,
    )
except ImportError:
    json_format = None


def setUpModule():
    need_programs()
    if json_format is None:
        if os.environ.get("CI"):
            raise AssertionError("opentelemetry-proto is not installed")
        raise unittest.SkipTest("opentelemetry-proto is not installed")


class OtlpTest(unittest.TestCase):
    def setUp(self):
        self.server = Server(self)
        self.server.answers["/v1/metrics"] = {}
        self.target = make_target(self, "otlp", types.SimpleNamespace(name="home"), url=self.server.url)

    def test_request_is_decoded_strictly(self):
        columns = {"temperature": [20.5, None, -1e-300], "light": [512, -(2**63) + 1, 0]}
        units = {"temperature": "°C", "light": 'l"x'}
        self.target.send([batch_of(some(1, 3, **columns), units=units), batch_of(some(9, 1), node="attic")])
        ((_, _, headers, body),) = self.server.asked
        request = json_format.Parse(body_of(headers, body), ExportMetricsServiceRequest())
        (resource,) = request.resource_metrics
        attributes = {each.key: each.value.string_value for each in resource.resource.attributes}
        self.assertEqual((attributes["service.name"], attributes["service.instance.id"]), ("pigeonpost", "home"))
        (scope,) = resource.scope_metrics
        found = {}
        for metric in scope.metrics:
            self.assertEqual(metric.WhichOneof("data"), "gauge")
            for point in metric.gauge.data_points:
                (node,) = point.attributes
                self.assertEqual((node.key, point.flags, point.WhichOneof("value")), ("node", 0, "as_double"))
                key = node.value.string_value, metric.name, metric.unit
                found.setdefault(key, []).append((point.time_unix_nano, point.as_double))
        times = {number: (WALL_MS + 1000 * number) * 1_000_000 for number in (1, 2, 3, 9)}
        self.assertEqual(found, {
            ("basement", "temperature", "Cel"): [(times[1], 20.5), (times[3], -1e-300)],
            ("basement", "light", 'l"x'): [(times[1], 512.0), (times[2], float(-(2**63) + 1)), (times[3], 0.0)],
            ("attic", "temperature", "Cel"): [(times[9], 29.5)],
        })  # fmt: skip

    def test_partial_success_is_understood_as_the_project_writes_it(self):
        partial = ExportMetricsPartialSuccess(rejected_data_points=3, error_message="out of order")
        answer = json_format.MessageToJson(ExportMetricsServiceResponse(partial_success=partial))
        self.server.answers["/v1/metrics"] = (200, {"Content-Type": "application/json"}, answer.encode())
        with self.assertRaisesRegex(RefusedData, "3 data points were rejected: out of order"):
            self.target.send([batch_of(some())])


if __name__ == "__main__":
    unittest.main()
