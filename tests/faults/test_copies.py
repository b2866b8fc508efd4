"""Cards and databases that are copied, set back or wiped between two starts, as users do."""

import random
import shutil
import tempfile
import unittest

from tests.faults.house import DISK, House, Program
from tests.support import free_port, long, rounds, wait_until

TIMES = rounds("PIGEONPOST_TEST_COPIES", 1, 20)


class Copies(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory(dir=DISK)
        self.addCleanup(folder.cleanup)
        self.house = House(folder.name, every_s=0.01)
        self.addCleanup(self.house.close)
        self.node, self.ledger = self.house.data / "node", self.house.data / "server"
        self.backup = self.house.data / "backup"
        self.chance = random.Random(random.randrange(1 << 32))
        self.house.start()
        self.collect()

    def collect(self):
        """Let some more samples be stored."""
        wanted = len(self.house.heard) + self.chance.randrange(2, 15)
        wait_until(lambda: self.house.is_stored(wanted), "samples are stored")

    def take(self, folder):
        """Copy a folder, as a backup does while no program writes."""
        shutil.rmtree(self.backup, ignore_errors=True)
        shutil.copytree(folder, self.backup)

    def put_back(self, folder):
        shutil.rmtree(folder)
        shutil.copytree(self.backup, folder)

    def check(self):
        self.house.settle()
        print(f"{self.id().rpartition('.')[2]}, {TIMES} times:", self.house.check())

    @long
    def test_a_server_without_its_data_gets_again_what_the_node_holds(self):
        for _ in range(TIMES):
            self.house.server.kill()
            shutil.rmtree(self.ledger)
            self.house.server.start()
            self.collect()
        self.check()

    @long
    def test_a_server_restored_from_a_backup_gets_what_it_lost(self):
        for _ in range(TIMES):
            self.house.server.stop()
            self.take(self.ledger)
            self.house.server.start()
            self.collect()
            self.house.server.kill()
            self.put_back(self.ledger)
            self.house.server.start()
            self.collect()
        self.house.settle()
        # The logs written since the backup are gone with it, so the store alone has to have everything.
        self.assertLessEqual(self.house.held() | set(self.house.heard), set(self.house.stored()))
        self.assertEqual(len(self.house.stored()), len(set(self.house.stored())))

    def test_a_card_that_was_rolled_back_gives_no_number_twice(self):
        for _ in range(TIMES):
            self.house.node.stop()
            self.take(self.node)
            self.house.node.start()
            self.collect()
            self.house.drain()  # samples that are only on the card are lost with it
            self.put_back(self.node)
            self.house.node.start()
            self.collect()
        self.check()

    @long
    def test_samples_of_a_wiped_card_are_collected_from_the_beginning(self):
        for _ in range(TIMES):
            self.house.drain()  # samples that are only on the card are lost with it
            shutil.rmtree(self.node)
            self.house.node.start()
            self.collect()
        self.check()

    @long
    def test_a_copied_card_in_a_second_pi_is_another_history(self):
        port = free_port()
        self.house.server.stop()
        self.house.server.command += ["--node", f"n@127.0.0.1:{port}"]
        self.house.server.start()
        for number in range(TIMES):
            copy = self.house.data / f"copy{number}"
            self.house.node.stop()
            shutil.copytree(self.node, copy)
            self.house.node.start()
            twin = Program(
                self.house.folder, "node.py", "--simulate", "--name", "n", "--every", "0.01", "--listen",
                f"127.0.0.1:{port}", "--data", str(copy),
            )  # fmt: skip
            self.addCleanup(twin.kill)
            twin.start()
            self.collect()
            wait_until(lambda: self.house.try_ask("SEND OFF", port).startswith("SENDBACK OFF"), "the twin answers")
            wait_until(lambda copy=copy: self.house.has_everything(copy), "its samples are stored")
            twin.stop()
        self.check()


if __name__ == "__main__":
    unittest.main()
