"""Tests of the default rule about silent nodes, and of rules with `silent`."""

import unittest

from protocol import IMPORTED
from tests.alerts.engine_support import OWN, EngineCase, Names
from tests.page_support import use_memory_disk


def setUpModule():
    use_memory_disk()


class DefaultRule(EngineCase):
    SHORTEST_S = 600.0

    def setUp(self):
        super().setUp()
        self.names = Names()
        self.start()

    def test_collected_node_is_reported_and_resolved(self):
        self.link("attic")
        self.bring(20)
        self.assertEqual(self.look(599), [])
        self.assert_said(self.look(2), r"^Alert: no sample of attic for 601 s at .* \(limit 600 s\)$")
        self.assertEqual(self.look(86_400), [])
        self.bring(20)
        self.assert_said(self.look(), "^Resolved: attic sends samples again at .*after 24 h")

    def test_limit_follows_the_usual_interval_of_the_node(self):
        for every_s, calls_in, limit_s in (
            (10, False, 600), (60, False, 600), (300, False, 905), (3600, True, 10_805), (None, True, 10_805),
            (None, False, 600), (20_000, True, 60_005),
        ):  # fmt: skip
            with self.subTest(every_s=every_s, calls_in=calls_in):
                node = f"n{every_s}-{calls_in}"
                self.link(node, calls_in=calls_in, every_s=every_s)
                self.bring(20, node)
                self.look()
                self.assertEqual(self.look(limit_s - 1), [])
                self.assert_said(self.look(1), f"no sample of {node} for {limit_s} s")
                self.names.retired.add(node)

    def test_node_is_reported_after_a_restart_though_it_has_no_link_yet(self):
        for calls_in, every_s, limit_s in ((True, 60, 600), (True, None, 10_805), (True, 1000, 3005)):
            with self.subTest(every_s=every_s):
                node = f"n{every_s}"
                self.link(node, calls_in=calls_in, every_s=every_s)
                self.bring(20, node)
                self.look()
                self.links.clear()
                self.clock.sleep(5000)
                self.start()
                self.assertEqual(self.look(limit_s - 1), [])
                self.assert_said(self.look(1), f"no sample of {node} for {limit_s} s")
                self.start()
                self.assertEqual(self.look(90_000), [])  # it was reported already
                self.bring(20, node)
                self.assert_said(self.look(), f"^Resolved: {node} sends samples again")
                self.names.retired.add(node)

    def test_node_in_data_of_an_earlier_version_is_found_in_the_store(self):
        for outbox in ("1111111111111111", OWN):
            self.file(self.sample(20, outbox), outbox, outbox, check=False)
        self.start()
        self.look()
        self.assert_said(self.look(10_806), f"2 alerts at .*no sample of {OWN}.*no sample of 1111111111111111")

    def test_imported_retired_and_unused_nodes_are_not_reported(self):
        imported = self.sample(20, "imported")._replace(up_ms=0)
        self.file(imported, "imported", IMPORTED)
        self.bring(20, "retired")
        self.names.retired.add("retired")
        self.link("removed", calls_in=False)
        self.bring(20, "removed")
        self.link("never")
        self.look()
        self.links.clear()  # the settings no longer contain it
        for _ in range(2):
            self.start()
            self.assertEqual([*self.look(), *self.look(90_000)], [])

    def test_node_of_another_server_in_the_same_database_is_not_reported(self):
        self.file(self.sample(20, "other"), "other", check=False)
        self.file(self.sample(20, "own"), "own", check=False)
        self.store.is_shared, self.tokens = True, {"own"}
        self.start()
        self.look()
        self.assert_said(self.look(90_000), "no sample of own")

    def test_node_that_is_not_in_the_store_is_not_reported(self):
        self.link("attic", calls_in=True)
        self.bring(20)
        self.look()
        self.links.clear()
        self.store = type(self.store)()  # the database was deleted
        self.start()
        self.assertEqual([*self.look(), *self.look(90_000)], [])
        self.assertNotIn('["node", "attic"]', self.queue.states())

    def test_node_found_by_its_token_is_reported(self):
        self.link("attic")
        self.bring(20)
        self.look()
        self.links.clear()
        self.tokens.add("attic")
        self.start()
        self.assert_said(self.look(700), "no sample of attic")

    def test_node_that_is_switched_off_is_not_reported(self):
        state = self.link("attic")
        self.bring(20)
        state.on = False
        self.look()
        self.assertEqual(self.look(90_000), [])
        self.links.clear()
        self.tokens.add("attic")
        self.start()
        self.assertEqual(self.look(90_000), [])
        state = self.link("attic")
        state.on = True
        self.assertEqual([*self.look(), *self.look(599)], [])
        self.assert_said(self.look(2), "no sample of attic")
        state.on = False
        self.assert_said(self.look(), "^Resolved: attic is switched off")

    def test_rule_for_the_node_replaces_the_default(self):
        self.tables = [{"silent": 50, "node": "attic"}]
        self.start()
        for node in ("attic", "cellar"):
            self.link(node)
            self.bring(20, node)
        self.assert_said(self.look(51), "no sample of attic for 51 s")
        self.assert_said(self.look(600), "no sample of cellar for 651 s")
        self.tables = [{"silent": 5000}]
        self.start()
        self.assert_said(self.look(4999), "^Resolved: 2 alerts at .*changed or removed")

    def test_default_rule_can_be_switched_off(self):
        self.SHORTEST_S = 0.0
        self.start()
        self.link("attic")
        self.bring(20)
        self.assertEqual(self.look(90_000), [])
        self.assertEqual(self.alerts.rules(), [])

    def test_corrected_clocks_change_nothing(self):
        self.link("attic")
        self.bring(20)
        for step_s in (-3600, 86_400, -400 * 86_400, 1e9, -1e9):
            self.clock.step(step_s)
            self.assertEqual(self.look(50), [])
        self.bring(20, time_ms=self.clock.wall_ms() + 9 * 86_400_000)  # the clock of a node that then dies is ahead
        self.assert_said(self.look(601), "no sample of attic for 601 s")
        self.clock.step(-86_400)
        self.assertEqual(self.look(5), [])

    def test_renamed_node_keeps_its_alert(self):
        state = self.link("attic")
        self.bring(20)
        self.assert_said(self.look(601), "no sample of attic")
        self.names.on_rename[-1]("attic", "loft")
        state.name = "loft"
        self.assertEqual(self.look(5), [])
        self.start()
        self.assertEqual(self.look(5), [])
        self.bring(20, "loft")
        self.assert_said(self.look(), "^Resolved: loft sends samples again")


if __name__ == "__main__":
    unittest.main()
