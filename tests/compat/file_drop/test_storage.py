import os
import threading
import unittest

from pigeonpost.compat.file_drop.storage import (
    STORED_NAME,
    FileStore,
    Pi,
    PiIds,
    checksum_of,
    listing,
    open_stored,
    plain_name,
    read_pi_id,
    sum_of,
)
from pigeonpost.core.errors import DiskError, SettingsError
from tests.compat.file_drop.support import OTHER_PI, PI, checksum, files
from tests.support import LIMIT_S, temp_folder

TYPES = (".csv", ".txt")


class FileNames(unittest.TestCase):
    def test_plain_name_keeps_safe_characters(self):
        for said, kept in (
            ("log.csv", "log.csv"), ("a b  c.csv", "a_b_c.csv"), ("../x.csv", "x.csv"), ("C:\\a\\b.txt", "b.txt"),
            ("Ümlaut.CSV", "Umlaut.CSV"), (".csv", ".csv"), ("数.csv", ".csv"), ("a/b/.csv", ".csv"),
            ("CON.txt", "CON.txt"), ("a.b.csv", "a.b.csv"), ("x" * 500 + ".csv", "x" * 100 + ".csv"),
            (" x.csv ", "x.csv"),
            ("x\x1b[2J.csv", "x2J.csv"), ("x.csv\0.txt", "x.csv.txt"),
        ):  # fmt: skip
            self.assertEqual(plain_name(said, TYPES), kept, said)

    def test_plain_name_is_empty_for_other_types(self):
        for said in (
            "",
            ".",
            "..",
            "csv",
            "log",
            "log.exe",
            "log.csv.",
            "log.csv/",
            "log.csv\\",
            "log.csvx",
            "log.c",
            "...csv",
        ):
            self.assertEqual(plain_name(said, TYPES), "", said)

    def test_plain_name_with_id_is_a_valid_stored_name(self):
        for said in ("log.csv", "x" * 500 + ".csv", "-.txt", "=1.csv"):
            self.assertTrue(STORED_NAME(f"{PI}_{plain_name(said, TYPES)}"))

    def test_pi_id_is_normalised_or_empty(self):
        self.assertEqual(read_pi_id(f" {PI.upper()}\n"), PI)
        for said in ("", "x", PI[1:], PI + "0", "0x" + PI[2:], "g" * 16, "１" * 16):
            self.assertEqual(read_pi_id(said), "", said)


class PiIdList(unittest.TestCase):
    def setUp(self):
        self.data = temp_folder(self)
        self.ids = PiIds(self.data)

    def test_change_of_the_id_list_is_seen_by_other_instances(self):
        other = PiIds(self.data)
        self.assertEqual(other.all(), {})
        with self.ids.changing() as known:
            known[PI] = Pi("attic", "a@example.org")
        self.assertEqual(other.find(PI), Pi("attic", "a@example.org"))
        self.assertIsNone(other.find(OTHER_PI))

    def test_failed_change_of_the_id_list_changes_nothing(self):
        with self.assertRaises(ZeroDivisionError), self.ids.changing() as known:
            known[PI] = Pi("attic")
            raise ZeroDivisionError
        self.assertEqual(self.ids.all(), {})

    def test_simultaneous_changes_are_all_kept(self):
        def add(number):
            with PiIds(self.data).changing() as known:
                known[f"{number:016x}"] = Pi(f"n{number}")

        threads = [threading.Thread(target=add, args=(number,)) for number in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LIMIT_S)
        self.assertEqual(len(self.ids.all()), 20)

    def test_damaged_id_list_raises_settings_error(self):
        for content in ("", "[]", "{", '{"a": 1}', '{"a": {}}', '{"a": {"email": "x"}}'):
            with open(os.path.join(self.data, "pi_ids.json"), "w", encoding="ascii") as file:
                file.write(content)
            with self.assertRaises(SettingsError, msg=content):
                PiIds(self.data).all()


class FileStoring(unittest.TestCase):
    def setUp(self):
        self.data = temp_folder(self)
        self.received = FileStore(self.data)
        self.received.start()

    def keep(self, content, name="log.csv", pi_id=PI):
        coming = self.received.begin(len(content))
        coming.write(content)
        return self.received.keep(coming, pi_id, name)

    def test_same_file_is_stored_once_and_other_content_gets_a_number(self):
        self.assertEqual(self.keep(b"1"), (f"{PI}_log.csv", True))
        self.assertEqual(self.keep(b"1"), (f"{PI}_log.csv", False))
        self.assertEqual(self.keep(b"2"), (f"{PI}_log_2.csv", True))
        self.assertEqual(self.keep(b"22"), (f"{PI}_log_3.csv", True))
        self.assertEqual(self.keep(b"2"), (f"{PI}_log_2.csv", False))
        self.assertEqual(self.keep(b"1", pi_id=OTHER_PI), (f"{OTHER_PI}_log.csv", True))
        self.assertEqual(len(files(self.data)), 4)

    def test_abandoned_file_is_deleted(self):
        coming = self.received.begin(10)
        coming.write(b"1")
        coming.abandon()
        coming.abandon()
        self.assertEqual(os.listdir(os.path.join(self.data, "files")), [])

    def test_modified_stored_file_does_not_count_as_the_same_file(self):
        name, _ = self.keep(b"12")
        with open(os.path.join(self.data, "files", name), "wb") as file:
            file.write(b"1")
        self.assertEqual(self.keep(b"12"), (f"{PI}_log_2.csv", True))

    def test_listing_returns_the_newest_files_and_the_count(self):
        self.assertEqual(listing(temp_folder(self), 10), ([], 0))
        for number in range(5):
            name, _ = self.keep(b"%d" % number, f"f{number}.csv")
            os.utime(os.path.join(self.data, "files", name), (1000 + number, 1000 + number))
        found, count = listing(self.data, 3)
        self.assertEqual(count, 5)
        self.assertEqual([one.name for one in found], [f"{PI}_f{number}.csv" for number in (4, 3, 2)])
        self.assertEqual(found[0][1:], (PI, 1, 1_004_000, checksum(b"4")))

    def test_open_stored_accepts_stored_files_only(self):
        name, _ = self.keep(b"1")
        fd = open_stored(self.data, name)
        self.addCleanup(os.close, fd)
        self.assertEqual(
            (os.read(fd, 10), sum_of(fd), checksum_of(self.data, name)), (b"1", checksum(b"1"), checksum(b"1"))
        )
        for other in ("", "..", "../pi_ids.json", f"{PI}_../x.csv", f"{PI}_log.sha256", f"{PI}_none.csv", name + "\0"):
            with self.assertRaises(FileNotFoundError, msg=other):
                open_stored(self.data, other)

    def test_start_raises_disk_error_if_the_folder_cannot_be_created(self):
        with open(os.path.join(self.data, "blocked"), "wb"):
            pass
        with self.assertRaises(DiskError):
            FileStore(os.path.join(self.data, "blocked")).start()


if __name__ == "__main__":
    unittest.main()
