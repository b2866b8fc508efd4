"""Clients that connect to the server: they are expected after a restart, with their usual intervals."""

import os
from unittest import mock

from pigeonpost.core import json_file
from pigeonpost.core.errors import DiskError
from pigeonpost.server.known_clients import KnownClients
from pigeonpost.server.node_status import NodeState
from pigeonpost.server.unnumbered_sources import Claim, ExternalReading, UnnumberedSources
from tests.page_support import use_memory_disk
from tests.server import test_unnumbered_sources
from tests.support import temp_folder

C = {"temperature": "°C"}


def setUpModule():
    use_memory_disk()


class KnownClientsTest(test_unnumbered_sources.Real):
    def start_again(self):
        """Return the sources of the next run, and its links."""
        links = []
        known = KnownClients(self.folder, self.faults)
        sources = UnnumberedSources(
            self.ingestor, links, self.clock, self.tokens, self.faults, self.throttle, known=known
        )
        sources.expect_known()
        return sources, links

    def setUp(self):
        super().setUp()
        self.folder = temp_folder(self)
        self.now = 100.0
        self.enterContext(mock.patch.object(self.clock, "monotonic", lambda: self.now))

    def call(self, sources, node, calls=1, step_s=300.0, **claim):
        for _ in range(calls):
            sources.queue(ExternalReading(Claim(node, "tmon", **claim), {"temperature": 1}, C))
            self.now += step_s

    def test_proven_and_listed_clients_are_expected_with_their_intervals(self):
        sources, links = self.start_again()
        self.call(sources, "attic", 10, is_proven=True)
        self.call(sources, "cellar", 3, 86_400.0, is_listed=True)
        self.call(sources, "invented", 12)
        sources, links = self.start_again()
        found = {link.state.name: (link.state.every_s, link.state.connected, link.state.calls_in) for link in links}
        self.assertEqual(found, {"attic": (300.0, False, True), "cellar": (86_400.0, False, True)})
        self.assertEqual({link.state.fault for link in links}, {"has not connected since the server's start"})
        self.call(sources, "attic", is_proven=True)
        self.assertEqual([link.state.connected for link in links], [True, False])
        self.assertEqual(links[0].state.every_s, 300.0)

    def test_client_is_not_expected_beside_another_link_of_its_node(self):
        self.call(self.start_again()[0], "attic", is_proven=True)
        sources = UnnumberedSources(
            self.ingestor, links := [mock.Mock(state=NodeState("10.0.0.7:5003", "attic"))], self.clock, self.tokens,
            self.faults, self.throttle, known=KnownClients(self.folder, self.faults),
        )  # fmt: skip
        sources.expect_known()
        self.assertEqual(len(links), 1)

    def test_renamed_client_is_expected_under_its_new_name_and_a_revoked_one_is_not(self):
        sources, _ = self.start_again()
        self.call(sources, "attic", is_proven=True)
        self.call(sources, "shed", is_proven=True)
        sources.on_rename("attic", "loft")
        sources.recheck_tokens(["shed"])  # it has no token
        _, links = self.start_again()
        self.assertEqual([link.state.name for link in links], ["loft"])

    def test_file_is_written_only_after_changes(self):
        sources, _ = self.start_again()
        with mock.patch.object(json_file, "replace_file", wraps=json_file.replace_file) as replaced:
            self.call(sources, "attic", 60, is_proven=True)
            self.call(sources, "attic", 60, 200, is_proven=True)
        self.assertEqual(replaced.call_count, 4)  # file and copy: at the first call, and when the interval was learned

    def test_damaged_file_is_a_fault_and_a_full_disk_is_none(self):
        path = os.path.join(self.folder, "clients.json")
        for content in (
            "[", "7", '{"a": {}}', '{"a": {"transport": "x", "every": -1, "on": null}}',
            '{"a": {"transport": "x", "proven": true, "listed": false, "every": 5, "on": "no"}}',
        ):  # fmt: skip
            with open(path, "w", encoding="ascii") as file:
                file.write(content)
            _, links = self.start_again()
            self.assertEqual(links, [], content)
            self.assertIn("clients.json", " ".join(self.faults.present().values()) + " ".join(self.faults.present()))
        os.unlink(path)
        with mock.patch.object(json_file, "replace_file", side_effect=DiskError("full")):
            self.call(self.start_again()[0], "attic", is_proven=True)
