"""Tests of modes and owners of all files that the programs create in their data folders."""

import os
import stat
import unittest

from pigeonpost.core import data_folder
from tests.page_support import Node, Server, control_here, use_memory_disk
from tests.support import temp_folder, wait_until
from tests.test_control import ControlCase

OTHER = 4321, 4322  # user and group ids that are not in use


def setUpModule():
    use_memory_disk()


def entries(folder):
    """Yield the path and the status of a folder and of everything below it."""
    yield folder, os.lstat(folder)
    for place, folders, files in os.walk(folder):
        for name in folders + files:
            path = os.path.join(place, name)
            try:
                yield path, os.lstat(path)
            except FileNotFoundError:
                pass  # a file that was being replaced


class DataFolders(ControlCase):
    def fill(self, server):
        """Create every file that both programs and the commands can create."""
        self.assertTrue(server.page)
        wait_until(lambda: "basement" in self.done("status"), "samples have come")
        for command in (["token", "attic"], ["file-id", "0123456789abcdef", "attic"], ["certificate"], ["verify"]):
            status, _, told = control_here("--data", self.data, *command)
            self.assertEqual(status, 0, told)
        self.done("password", said="correct horse\n")

    def check(self, owner, *folders):
        for folder in folders:
            for path, status in entries(folder):
                with self.subTest(path):
                    self.assertEqual(stat.S_IMODE(status.st_mode) & 0o077, 0)
                    self.assertEqual((status.st_uid, status.st_gid), owner)
        if len(folders) == 1:
            return
        names = {path.rpartition("/")[2] for folder in folders for path, _ in entries(folder)}
        made = (
            data_folder.DATABASE, f"{data_folder.DATABASE}-wal", f"{data_folder.DATABASE}-shm", data_folder.OUTBOX,
            data_folder.OUTBOX_LOCK, data_folder.SERVER_LOCK, data_folder.RUNNING, data_folder.TOKENS,
            f"{data_folder.TOKENS}.bak", data_folder.USERS, data_folder.PI_IDS, data_folder.CERTIFICATE,
        )  # fmt: skip
        self.assertEqual(set(made) - names, set())

    def test_all_files_belong_to_the_owner_of_the_folder_only(self):
        """This includes files that root creates in another user's folder."""
        card, is_root = temp_folder(self), os.geteuid() == 0
        owner = OTHER if is_root else (os.getuid(), os.getgid())
        for folder in (self.data, card):
            os.chown(folder, *owner)
        server = Server(self, "--node", Node(self, "--data", card).at, data=self.data)
        self.fill(server)
        self.check(owner, self.data, card)
        server.terminate()
        self.assertEqual(server.wait(), 0)
        tar = os.path.join(temp_folder(self), "b.tar")
        self.done("backup", tar)
        self.done("restore", tar)
        os.unlink(os.path.join(self.data, data_folder.USERS))
        self.done("restore", os.path.join(self.data, f"{data_folder.USERS}.bak"))
        self.check(owner, self.data)


if __name__ == "__main__":
    unittest.main()
