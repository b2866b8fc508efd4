import types
import unittest
from unittest import mock

from pigeonpost.core.errors import SettingsError
from pigeonpost.integrations import pigeonpost_server
from pigeonpost.integrations.contract import NotDelivered, RefusedData
from pigeonpost.link.samples import SampleBatch
from pigeonpost.storage.models import FormerName
from pigeonpost.transports.push_server import PushServerTransport
from tests.http_servers import Server, certificates
from tests.integrations.forwarding import OUTBOX, batch_of, make_target, some
from tests.page_support import use_memory_disk
from tests.support import EPOCH, WALL_MS
from tests.web.support import FakeLink, WebHouse

OTHER = "f" * 16


def setUpModule():
    use_memory_disk()


class Case(unittest.TestCase):
    links = ()

    def setUp(self):
        for name in ("server.unnumbered_sources", "server.ingest", "transports.push_server"):
            self.enterContext(mock.patch(f"pigeonpost.{name}.log"))
        self.web = WebHouse(self, transports=[PushServerTransport], links=self.links)
        self.url = f"http://{self.web.address[0]}:{self.web.address[1]}"
        self.token = self.web.api_tokens.make("relay", "writer")
        self.former = []
        records = types.SimpleNamespace(former=self.former)
        self.context = types.SimpleNamespace(name="home", names=types.SimpleNamespace(records=records))

    def target(self, **keys):
        return make_target(self, "pigeonpost", self.context, **{"url": self.url, "token": self.token, **keys})

    def stored(self, node="basement"):
        return [(p.epoch, p.seq, p.time_ms, p.values) for p in self.web.store.points(node, 0, 1 << 60, 100_000)]

    def seqs(self, node="basement", epoch=EPOCH):
        return [seq for found, seq, _, _ in self.stored(node) if found == epoch]

    def gaps(self):
        return [(gap["node"], gap["from"], gap["to"], gap["why"]) for gap in self.web.store.gaps(-1)]

    def state(self, node="basement"):
        return next(link.state for link in self.web.links if link.state.name == node)


class Forwarded(Case):
    def test_samples_keep_their_identity_values_and_units(self):
        samples = SampleBatch(1, [WALL_MS, WALL_MS + 10], [], {"temperature": [20.5, None], "door": [1, 2**63 - 1]},
                              {"temperature": {1: "no answer"}}, "unset")  # fmt: skip
        self.target().send([batch_of(samples)])
        self.assertEqual(self.stored(), [
            (EPOCH, 1, WALL_MS, {"temperature": 20.5, "door": 1}),
            (EPOCH, 2, WALL_MS + 10, {"temperature": None, "door": 2**63 - 1}),
        ])  # fmt: skip
        self.assertEqual([p.clock for p in self.web.store.points("basement", 0, 1 << 60, 9)], ["unset", "unset"])
        self.assertEqual(self.web.store.nodes()[0]["sensors"], {"temperature": "°C", "door": ""})

    def test_each_sample_is_stored_once_however_often_it_is_sent(self):
        target = self.target()
        for _ in range(2):
            target.send([batch_of(some(1, 3)), batch_of(some(1, 2), node="attic", epoch=OTHER)])
        target.send([batch_of(some(2, 4))])
        self.target().send([batch_of(some(1, 6))])  # after a crash of this server, which lost its position
        self.assertEqual((self.seqs(), self.seqs("attic", OTHER)), ([1, 2, 3, 4, 5, 6], [1, 2]))
        self.assertEqual((self.gaps(), self.web.ingestor.repeated), ([], 0))

    def test_missing_samples_become_a_gap(self):
        target = self.target()
        target.send([batch_of(some(3, 2), after=0)])
        target.send([batch_of(some(9, 1), after=4)])
        self.assertEqual(self.seqs(), [3, 4, 9])
        self.assertEqual(
            self.gaps()[::-1], [("basement", 1, 2, "missing on home"), ("basement", 5, 8, "missing on home")]
        )

    def test_gap_states_whether_samples_are_missing_or_were_not_forwarded(self):
        self.target().send([batch_of(some(9, 1), after=5)])
        self.assertEqual(self.gaps()[::-1], [
            ("basement", 1, 5, "not forwarded by home"),
            ("basement", 6, 8, "missing on home"),
        ])  # fmt: skip

    def test_gap_that_the_other_server_has_is_not_repeated(self):
        self.target().send([batch_of(some(9, 1), after=5)])
        self.target().send([batch_of(some(9, 2), after=5)])
        self.assertEqual((self.seqs(), len(self.gaps())), ([9, 10], 2))

    def test_long_batches_are_divided(self):
        wide = {f"s{number}": [float(number)] * 300 for number in range(60)}
        with mock.patch.object(pigeonpost_server, "PAYLOAD_BYTES", 20_000):
            self.target().send([batch_of(some(1, 300, **wide))])
        self.assertEqual(self.seqs(), list(range(1, 301)))

    def test_node_that_connects_itself_later_is_not_taken_for_a_copy(self):
        """Its uptime is unknown to the relay, and a mark with another uptime would be a fork."""
        self.target().send([batch_of(some(1, 3))])
        marks = self.web.store.marks("basement", OUTBOX, [EPOCH])[1]
        self.assertEqual(tuple(marks[EPOCH]), (3, None))

    def test_forwarded_node_takes_no_commands_and_has_its_interval(self):
        target = self.target()
        target.send([batch_of(some(1, 1, step_ms=10_000))])
        self.assertIsNone(self.state().every_s)
        target.send([batch_of(some(2, 1, step_ms=10_000))])
        target.send([batch_of(some(3, 1, step_ms=10_000))])
        state = self.state()
        self.assertEqual((state.every_s, state.takes_orders, state.connected), (10.0, False, True))

    def test_number_of_forwarded_nodes_is_not_that_of_unknown_clients(self):
        with mock.patch("pigeonpost.server.unnumbered_sources.MOST_UNPROVEN", 2):
            target = self.target()
            target.send([batch_of(some(1, 1), node=f"n{number}") for number in range(5)])
        self.assertEqual(len(self.web.store.nodes()), 5)

    def test_renamed_node_keeps_its_name_at_the_other_server(self):
        self.target().send([batch_of(some(1, 3), node="old")])
        self.former[:] = [FormerName("older", "new", 1), FormerName("old", "new", 2), FormerName("x", "y", 3)]
        self.target().send([batch_of(some(4, 1), node="new")])
        self.target().send([batch_of(some(1, 1), node="new", epoch=OTHER)])
        self.assertEqual((self.seqs("old"), self.seqs("old", OTHER), self.gaps()), ([1, 2, 3, 4], [1], []))
        self.target().send([batch_of(some(1, 1), node="fresh")])
        self.assertEqual(self.seqs("fresh"), [1])
        self.assertEqual({link.state.name for link in self.web.links}, {"old", "fresh"})  # not the names it asked for


class Refused(Case):
    links = (FakeLink("collected"),)

    def error(self, batch=None, kind=NotDelivered, **keys):
        with self.assertRaises(kind) as caught:
            self.target(**keys).send([batch or batch_of(some())])
        self.assertNotIn(self.token, str(caught.exception))
        return str(caught.exception)

    def test_token_that_is_unknown_or_may_not_write_is_reported(self):
        self.assertIn("`control.py api-token NAME --role writer` creates a token", self.error(token="wrong"))
        viewer = self.web.api_tokens.make("viewer")
        self.assertIn("requires the role writer", self.error(token=viewer))
        node = self.web.tokens.make("basement")
        self.assertIn("not the token of a node", self.error(token=node))
        self.assertEqual(self.stored(), [])

    def test_node_with_a_token_of_the_other_server_is_refused(self):
        self.web.tokens.make("basement")
        self.assertIn("node basement has a token", self.error())
        self.assertEqual(self.stored(), [])

    def test_node_that_the_other_server_collects_is_refused(self):
        self.assertIn("This server collects from node collected itself", self.error(batch_of(some(), node="collected")))
        self.assertEqual([link.state.name for link in self.web.links], ["collected"])

    def test_limit_of_the_other_server_gives_up_no_sample(self):
        huge = batch_of(SampleBatch(10**18 - 2, [WALL_MS], [], {"light": [1]}), after=0)
        self.assertIn("raise this limit on the other server", self.error(huge))

    def test_invalid_sample_is_refused_data(self):
        self.error(batch_of(some(1, 1, temperature=[2**63])), RefusedData)

    def test_hole_at_the_other_server_is_asked_for_again(self):
        target = self.target()
        target.send([batch_of(some(1, 3))])
        target._epochs["basement", EPOCH].have = 5  # as if the other server had lost 4 and 5
        with self.assertRaises(NotDelivered):
            target.send([batch_of(some(6, 1))])
        target.send([batch_of(some(4, 3))])
        self.assertEqual(self.seqs(), [1, 2, 3, 4, 5, 6])

    def test_unexpected_answer_gives_up_no_sample(self):
        server = Server(self)
        resume, post = "/pp/api/v1/samples/resume", "/pp/api/v1/samples"
        good = {"relay": True, "have": 0, "known": False}
        for answers, words in (
            ({resume: {"have": 0}}, "it is an older version"),
            ({resume: {**good, "have": "x"}}, "invalid mark"),
            ({resume: (200, {}, b"<html>")}, "is it a Pigeonpost server"),
            ({resume: (400, {}, b"what?")}, "is it a Pigeonpost server"),
            ({resume: good, post: {"ack": 2}}, "acknowledges 2"),
            ({resume: good, post: (503, {"Retry-After": "5"}, b'{"error":{"code":"busy"}}')}, "503"),
        ):
            server.answers = answers
            with self.subTest(words):
                self.assertIn(words, self.error(url=f"{server.url}/pp"))

    def test_server_with_another_certificate_receives_no_token(self):
        import ssl

        ((certificate, key),) = certificates(type(self), "localhost")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        server = Server(self, context)
        self.assertIn("certificate", self.error(url=server.url, certificate="ab" * 32))
        self.assertEqual(server.asked, [])

    def test_invalid_settings_are_errors(self):
        for keys, words in (
            ({"url": "localhost"}, "url takes an address"), ({"certificate": "ab"}, "certificate takes the SHA-256"),
            ({"token": ""}, "token is missing; on the other server"),
        ):  # fmt: skip
            with self.assertRaisesRegex(SettingsError, words):
                self.target(**keys)


if __name__ == "__main__":
    unittest.main()
