"""Annotations for charts, and notes of operators."""

import json
import os
import unittest
from unittest import mock

from pigeonpost.core.clock import rfc3339
from pigeonpost.core.errors import DiskError
from pigeonpost.server import notes
from pigeonpost.server.notes import Note, Notes
from pigeonpost.views import annotations
from tests.page_support import use_memory_disk
from tests.support import temp_folder
from tests.test_webui import WebCase

PATH = "/api/v1/annotations"


def setUpModule():
    use_memory_disk()


class AnnotationsOfTheServer(WebCase):
    def setUp(self):
        super().setUp()
        self.events = self.web.web._event_log
        self.now_ms = self.web.app.clock.wall_ms()

    def put(self, ago_s, node, kind, words):
        self.events._add(self.now_ms - 1000 * ago_s, node, kind, words)

    def found(self, query=""):
        return [(one["kind"], one["node"], one["text"], one["time"] - self.now_ms, one["timeEnd"] - one["time"])
                for one in self.json("/api/v1/annotations" + query)]  # fmt: skip

    def test_outages_faults_and_off_times_have_a_duration(self):
        self.put(90, "basement", "lost", "lost: closed")
        self.put(80, "attic", "lost", "lost: closed")
        self.put(70, "basement", "reached", "connected")
        self.put(60, "", "fault", "mail: does not answer")
        self.put(50, "", "fault", "redis: does not answer")
        self.put(40, "", "mended", "mail: works again")
        self.put(30, "basement", "off", "switched off")
        self.put(20, "basement", "on", "switched on")
        found = {(kind, node, text): (start, length) for kind, node, text, start, length in self.found()}
        for key, expected in {
            ("lost", "basement", "lost: closed"): (-90_000, 20_000),
            ("reached", "basement", "connected"): (-70_000, 0),
            ("fault", "", "mail: does not answer"): (-60_000, 20_000),
            ("off", "basement", "switched off"): (-30_000, 10_000),
        }.items():
            self.assertEqual(found[key], expected, key)
        for key in (("lost", "attic", "lost: closed"), ("fault", "", "redis: does not answer")):
            self.assertGreaterEqual(sum(found[key]), 0, key)  # until now

    def test_range_node_and_kind_select_annotations(self):
        self.put(90, "basement", "lost", "lost: closed")
        self.put(70, "basement", "reached", "connected")
        self.put(50, "attic", "reached", "connected")
        kinds = [one[:2] for one in self.found("?from=-60s&to=-40s")]
        self.assertEqual(kinds, [("reached", "attic")])
        self.assertIn(("lost", "basement"), [one[:2] for one in self.found("?from=-80s&to=-75s")])  # it overlaps
        self.assertEqual({one[:2] for one in self.found("?node=attic&kind=reached,lost")}, {("reached", "attic")})
        self.assertIn(("started", ""), [one[:2] for one in self.found("?node=attic")])
        for query in ("?kind=often", "?node=-", "?from=never"):
            self.json("/api/v1/annotations" + query, 400)

    def test_gaps_and_calibrations_are_annotations(self):
        gap = {"node": "basement", "epoch": "0" * 16, "from": 3, "to": 5, "before": 1, "why": "overwritten",
               "noted_ms": self.now_ms - 5000}  # fmt: skip
        body = {"sensor": "temperature", "points": [[0, 1], [10, 11]], "from": rfc3339(self.now_ms - 10_000)}
        self.post_json("/api/v1/nodes/basement/calibrate", {**body, "note": "ice"})
        with mock.patch.object(self.web.store, "gaps", return_value=[gap]):
            found = self.found("?kind=gap,calibration")
        self.assertEqual([one[:3] for one in found], [
            ("calibration", "basement", "a calibration of temperature is valid from here: ice"),
            ("gap", "basement", "4 samples permanently lost: overwritten"),
        ])  # fmt: skip

    def test_only_the_newest_annotations_are_sent(self):
        for k in range(5):
            self.put(50 - k, "basement", "reached", f"number {k}")
        with mock.patch.object(annotations, "MOST_SHOWN", 2):
            self.assertEqual([one[2] for one in self.found("?kind=reached")], ["number 3", "number 4"])

    def test_note_is_durable_and_on_the_page_of_events(self):
        added = self.post_json(PATH, {"text": 'window <b>"open"', "tags": ["house"], "time": self.now_ms - 60_000,
                                      "timeEnd": rfc3339(self.now_ms), "node": "basement"})  # fmt: skip
        (one,) = self.json(f"{PATH}?kind=note")
        self.assertEqual((one["text"], one["tags"], one["node"], one["timeEnd"] - one["time"], one["id"]),
                         ('window <b>"open"', ["note", "house"], "basement", 60_000, added["id"]))  # fmt: skip
        self.assertEqual([note.text for note in Notes(self.web.folder).all().values()], ['window <b>"open"'])
        self.assertIn('note of control.py: window <b>"open"', self.get("/happenings.json").replace("\\", ""))
        self.assertIn("window &lt;b&gt;&quot;open&quot;", self.page("/happenings").replace("&#34;", "&quot;"))

    def test_note_without_a_time_is_about_now_and_all_nodes(self):
        self.post_json(PATH, {"text": "painted"})
        (one,) = self.json(f"{PATH}?node=attic&kind=note")
        self.assertTrue(0 <= one["time"] - self.now_ms < 60_000 and one["time"] == one["timeEnd"])
        self.assertEqual(one["title"], "house")

    def test_note_can_be_removed(self):
        added = self.post_json(PATH, {"text": "mistake"})
        self.assertEqual(self.post_json(PATH, {"remove": added["id"]}), {"removed": added["id"]})
        self.assertEqual(self.json(f"{PATH}?kind=note"), [])
        self.post_json(PATH, {"remove": added["id"]}, 404)

    def test_refused_time_of_a_note_has_its_own_reason(self):
        for body, reason in (({"time": 10**15 - 1}, "years 1 to 9999"), ({"time": 5, "timeEnd": 4}, "before its time")):
            self.assertIn(reason, self.post_json(PATH, {"text": "a", **body}, 400)["error"]["text"])

    def test_invalid_notes_are_refused(self):
        for body in (
            {}, {"text": ""}, {"text": " "}, {"text": "a\nb"}, {"text": "x" * 501}, {"text": 1},
            {"text": "a", "tags": "b"},
            {"text": "a", "tags": [1]}, {"text": "a", "tags": ["b"] * 11}, {"text": "a", "tags": [""]},
            {"text": "a", "node": "-"}, {"text": "a", "time": -1}, {"text": "a", "time": True},
            {"text": "a", "time": "x"},
            {"text": "a", "time": 5, "timeEnd": 4}, {"text": "a", "time": 10**15}, {"remove": 5},
        ):  # fmt: skip
            with self.subTest(body=body):
                self.assertIn("error", self.post_json(PATH, body, 400))
        with mock.patch.object(notes, "MOST_NOTES", 0):
            self.assertIn("remove some", self.post_json(PATH, {"text": "a"}, 409)["error"]["text"])
        with mock.patch.object(Notes, "_write", side_effect=DiskError("disk full")):
            self.post_json(PATH, {"text": "a"}, 503)
        self.assertEqual(self.json(f"{PATH}?kind=note"), [])

    def test_note_needs_the_role_operator(self):
        body = json.dumps({"text": "a"}).encode()
        kind = {"Content-Type": "application/json"}
        for role, status in (("viewer", 403), ("writer", 403), ("operator", 200)):
            token = self.web.api_tokens.make(f"t-{role}", role)
            headers = {**kind, "Authorization": f"Bearer {token}"}
            self.assertEqual(self.web.request("POST", PATH, headers, body)[0], status, role)


class NotesFile(unittest.TestCase):
    def setUp(self):
        self.folder = temp_folder(self)

    def test_notes_follow_a_renamed_node(self):
        found = Notes(self.folder)
        found.add(Note(5, 5, "a", (), "attic"))
        found.add(Note(6, 6, "b", ("c",), "cellar"))
        found.on_rename("attic", "loft")
        self.assertEqual([note.node for note in Notes(self.folder).all().values()], ["loft", "cellar"])

    def test_former_names_are_resolved(self):
        Notes(self.folder).add(Note(5, 5, "a", (), "attic"))
        (note,) = Notes(self.folder, {"attic": "loft"}.__getitem__).all().values()
        self.assertEqual(note.node, "loft")

    def test_damaged_file_is_restored_from_its_copy_and_invalid_notes_are_damage(self):
        path = os.path.join(self.folder, "notes.json")
        Notes(self.folder).add(Note(5, 5, "a"))
        for text in ("{", '{"1": {"time_ms": "x", "end_ms": 5, "text": "a"}}', '{"1": {"text": 5}}', '{"1": []}'):
            with open(path, "w", encoding="utf-8") as file:
                file.write(text)
            with self.assertLogs("pigeonpost.core.json_file", "ERROR"):
                self.assertEqual([note.text for note in Notes(self.folder).all().values()], ["a"])
        for name in (path, f"{path}.bak"):
            with open(name, "w", encoding="utf-8") as file:
                file.write("{")
        self.assertEqual(Notes(self.folder).all(), {})


if __name__ == "__main__":
    unittest.main()
