"""Tests of core.container, and of the name that a node keeps."""

import os
import unittest
from unittest import mock

from pigeonpost.core import container
from pigeonpost.core.errors import SettingsError
from pigeonpost.node.kept_name import node_name
from tests.support import temp_folder

ID, OTHER_ID = "3f2a1b4c5d6e", "0123456789ab"


class ContainerCase(unittest.TestCase):
    def setUp(self):
        self.folder = temp_folder(self)
        for patch in (
            mock.patch.dict(os.environ),
            mock.patch.object(container, "_SIGNS", (os.path.join(self.folder, "sign"),)),
        ):
            patch.start()
            self.addCleanup(patch.stop)
        for name in ("BALENA", "BALENA_DEVICE_NAME_AT_INIT", "container"):
            os.environ.pop(name, None)

    def enter(self):
        """Pretend that this is a container from now on."""
        with open(os.path.join(self.folder, "sign"), "w", encoding="ascii"):
            pass

    def named(self, host):
        """Return the name of a node on a host with this name."""
        with mock.patch("socket.gethostname", return_value=host):
            return node_name(self.folder)


class Container(ContainerCase):
    def test_container_is_recognised_by_a_file_or_a_variable(self):
        self.assertFalse(container.in_container())
        for name, value in (("BALENA", "1"), ("container", "podman")):
            os.environ[name] = value
            self.assertTrue(container.in_container())
            del os.environ[name]
        self.enter()
        self.assertTrue(container.in_container())

    def test_only_twelve_hex_digits_count_as_an_id(self):
        self.enter()
        for host, expected in ((ID, True), ("raspberrypi", False), (ID + "0", False), ("3f2a1b4c5d6g", False)):
            with mock.patch("socket.gethostname", return_value=host):
                self.assertEqual(container.is_named_by_id(), expected, host)


class KeptName(ContainerCase):
    def test_name_of_the_first_start_is_kept_in_a_container(self):
        self.enter()
        self.assertEqual([self.named(ID), self.named(OTHER_ID)], [ID, ID])
        self.assertEqual(os.stat(os.path.join(self.folder, "node-name")).st_mode & 0o777, 0o600)

    def test_host_name_is_used_if_it_is_not_an_id(self):
        self.assertEqual([self.named("attic"), self.named(ID), self.named("cellar")], ["attic", ID, "cellar"])
        self.enter()
        self.assertEqual([self.named("attic"), self.named("cellar")], ["attic", "cellar"])
        self.assertEqual(os.listdir(self.folder), ["sign"])

    def test_name_of_balena_is_used(self):
        os.environ["BALENA_DEVICE_NAME_AT_INIT"] = "quiet-river"
        self.enter()
        self.assertEqual(self.named(ID), "quiet-river")

    def test_file_without_a_valid_name_is_refused(self):
        self.enter()
        path = os.path.join(self.folder, "node-name")
        for content in (b"", b"two words\n", b"\xff\n"):
            with open(path, "wb") as file:
                file.write(content)
            with self.assertRaisesRegex(
                SettingsError, f"{path} does not contain a valid node name .* write one in this file"
            ):
                self.named(ID)


if __name__ == "__main__":
    unittest.main()
