"""Tests of durable files: atomic replacement, synced folders, locks, modes and owners."""

import contextlib
import errno
import os
import socket
import subprocess
import sys
import unittest
from unittest import mock

from pigeonpost.core import files
from pigeonpost.core.errors import DiskError, InUse
from pigeonpost.core.files import (
    close_to_others,
    give_to_owner,
    is_device,
    kind_of_filesystem,
    lock_data_dir,
    make_folder,
    replace_file,
    replacement_of,
    sync_folder,
)
from pigeonpost.core.json_file import JsonFile
from tests.support import ROOT, Killed, clean_environment, temp_folder


class ReplaceFile(unittest.TestCase):
    def setUp(self):
        self.path = os.path.join(temp_folder(self), "deep", "tokens.json")

    def content(self):
        with open(self.path, "rb") as file:
            return file.read()

    def test_file_contains_the_new_content(self):
        for content in (b"first", b"", b"second and longer"):
            replace_file(self.path, content)
            self.assertEqual(self.content(), content)
        self.assertEqual(os.listdir(os.path.dirname(self.path)), ["tokens.json"])

    def test_file_gets_the_given_mode(self):
        for mode in (0o600, 0o644, 0o600):
            replace_file(self.path, b"x", mode)
            self.assertEqual(os.stat(self.path).st_mode & 0o777, mode)

    def test_secret_is_never_readable_by_others(self):
        os.makedirs(os.path.dirname(self.path))
        with open(self.path + ".new", "w") as file:
            file.write("left by a crash")
        os.chmod(self.path + ".new", 0o644)
        modes = []

        def write(fd, data):
            modes.append(os.fstat(fd).st_mode & 0o777)
            return write_for_real(fd, data)

        write_for_real = os.write
        with mock.patch.object(files.os, "write", write):
            replace_file(self.path, b"secret", 0o600)
        self.assertEqual(set(modes), {0o600})
        self.assertEqual(self.content(), b"secret")

    def test_short_writes_are_continued(self):
        replace_file(self.path, b"old")
        write = os.write
        with mock.patch.object(files.os, "write", lambda fd, data: write(fd, data[:3])):
            replace_file(self.path, b"new and whole")
        self.assertEqual(self.content(), b"new and whole")

    def test_full_disk_leaves_the_old_content(self):
        replace_file(self.path, b"old")
        write = os.write
        answers = iter([4])

        def full(fd, data):
            for count in answers:
                return write(fd, data[:count])
            raise OSError(errno.ENOSPC, "No space left on device")

        with mock.patch.object(files.os, "write", full), self.assertRaises(DiskError) as caught:
            replace_file(self.path, b"new and whole")
        self.assertEqual(str(caught.exception), f"{self.path}: No space left on device")
        self.assertEqual(self.content(), b"old")

    def test_failure_of_any_call_leaves_the_old_or_the_new_content(self):
        names = ("open", "fchmod", "write", "fsync", "close", "rename")
        for fault in (OSError(errno.EIO, "Input/output error"), Killed()):
            for name in names:
                for at in range(1, 4):
                    replace_file(self.path, b"old")
                    real, calls = getattr(os, name), 0

                    def call(*arguments, real=real, at=at, fault=fault):
                        nonlocal calls
                        calls += 1
                        if calls == at:
                            raise fault
                        return real(*arguments)

                    with self.subTest(f"{name} {at} {fault!r}"), mock.patch.object(files.os, name, call):
                        try:
                            replace_file(self.path, b"new and whole")
                        except (DiskError, Killed):
                            pass
                    self.assertIn(self.content(), (b"old", b"new and whole"))

    def test_file_is_synced_before_the_rename_and_the_folder_after_it(self):
        calls = []

        def noting(name):
            real = getattr(os, name)
            return lambda *arguments: (calls.append(name), real(*arguments))[1]

        with mock.patch.multiple(files.os, write=noting("write"), fsync=noting("fsync"), rename=noting("rename")):
            replace_file(self.path, b"x")
        self.assertEqual(calls, ["write", "fsync", "rename", "fsync"])

    def test_unwritable_folder_raises_disk_error(self):
        with self.assertRaises(DiskError) as caught:
            replace_file("/proc/nothing/here", b"x")
        self.assertTrue(str(caught.exception).startswith("/proc/nothing/here: "))


class Devices(unittest.TestCase):
    def setUp(self):
        self.folder = temp_folder(self)

    def path(self, name):
        return os.path.join(self.folder, name)

    def test_devices_and_pipes_are_recognised(self):
        os.mkfifo(self.path("fifo"))
        os.symlink("fifo", self.path("link"))
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(self.path("socket"))
            paths = ("/dev/null", "/dev/zero", self.path("fifo"), self.path("link"), self.path("socket"))
            for path in paths:
                self.assertTrue(is_device(path), path)

    def test_files_and_folders_are_no_devices(self):
        with open(self.path("file"), "wb"):
            pass
        os.symlink("file", self.path("link"))
        for path in (self.path("file"), self.path("link"), self.path("missing"), self.path("file/x"), self.folder):
            self.assertFalse(is_device(path), path)

    def test_device_is_not_replaced(self):
        os.mkfifo(self.path("fifo"))
        with self.assertRaisesRegex(DiskError, "fifo is not a regular file"), replacement_of(self.path("fifo")):
            self.fail("the block is not entered")
        self.assertEqual(os.listdir(self.folder), ["fifo"])


class Locks(unittest.TestCase):
    def test_second_lock_of_the_same_data_is_refused(self):
        path = os.path.join(temp_folder(self), "new", "outbox.lock")
        first = lock_data_dir(path)
        code = "import sys; from pigeonpost.core.files import lock_data_dir; lock_data_dir(sys.argv[1])"
        second = subprocess.run(
            [sys.executable, "-c", code, path], cwd=ROOT, env=clean_environment(), capture_output=True, text=True
        )
        self.assertIn(f"InUse: {path} is locked by process {os.getpid()}: only one program", second.stderr)
        with self.assertRaises(InUse):
            lock_data_dir(path)
        os.close(first)
        os.close(lock_data_dir(path))

    def test_lock_works_on_a_full_disk(self):
        path = os.path.join(temp_folder(self), "lock")
        with mock.patch.object(files.os, "pwrite", side_effect=OSError(errno.ENOSPC, "No space left on device")):
            fd = lock_data_dir(path)
        with self.assertRaises(InUse):
            lock_data_dir(path)
        os.close(fd)

    def test_descriptor_of_a_lock_is_not_inherited(self):
        fd = lock_data_dir(os.path.join(temp_folder(self), "lock"))
        self.assertFalse(os.get_inheritable(fd))
        os.close(fd)

    def test_lock_in_an_impossible_folder_raises_disk_error(self):
        path = os.path.join(temp_folder(self), "file")
        with open(path, "w"):
            pass
        with self.assertRaises(DiskError) as caught:
            lock_data_dir(os.path.join(path, "sub", "lock"))
        self.assertIn("choose a writable folder with --data DIR", str(caught.exception))


class PrivateFolders(unittest.TestCase):
    def setUp(self):
        self.folder = os.path.join(temp_folder(self), "above", "data")

    def mode(self):
        return os.stat(self.folder).st_mode & 0o777

    def test_new_folder_is_private_and_nothing_is_logged(self):
        with self.assertNoLogs():
            close_to_others(self.folder)
        self.assertEqual(self.mode(), 0o700)

    def test_readable_folder_is_made_private_and_logged_once(self):
        os.makedirs(self.folder)
        for mode in (0o755, 0o710, 0o701, 0o2770):
            os.chmod(self.folder, mode)
            with self.assertLogs("pigeonpost.core.files", "INFO") as logged:
                close_to_others(self.folder)
            self.assertEqual((self.mode(), len(logged.output)), (0o700, 1))
            self.assertIn("was readable by other users", logged.output[0])
            with self.assertNoLogs():
                close_to_others(self.folder)

    def test_shared_folder_is_not_changed(self):
        os.makedirs(self.folder)
        for mode in (0o1777, 0o777, 0o1755):
            os.chmod(self.folder, mode)
            self.assert_left_open(mode, "is not used by Pigeonpost alone")
        os.chmod(self.folder, 0o755)
        with mock.patch.dict(os.environ, {"HOME": os.path.realpath(self.folder)}):
            self.assert_left_open(0o755, "is not used by Pigeonpost alone")
        with open(os.path.join(self.folder, "of another program"), "w", encoding="ascii"):
            pass
        with mock.patch("os.geteuid", return_value=os.stat(self.folder).st_uid):
            os.chmod(self.folder, 0o755)
            if os.geteuid() == 0:  # as with /opt
                self.assert_left_open(0o755, "contains files of other programs")

    def test_file_system_without_modes_causes_only_a_warning(self):
        os.makedirs(self.folder)
        os.chmod(self.folder, 0o755)
        with mock.patch("os.chmod", side_effect=PermissionError(1, "Operation not permitted")):
            self.assert_left_open(0o755, "cannot be made private")

    def assert_left_open(self, mode, why):
        with self.assertLogs("pigeonpost.core.files", "WARNING") as logged:
            close_to_others(self.folder)
        self.assertIn(f"{self.folder} {why}", logged.output[0])
        self.assertIn(f"chmod 700 {self.folder}", logged.output[0])
        self.assertEqual(os.stat(self.folder).st_mode & 0o7777, mode)

    def test_mounted_folder_and_folder_of_another_user_are_not_changed(self):
        os.makedirs(self.folder, 0o755)
        os.chmod(self.folder, 0o755)
        for name, there in (("path.ismount", True), ("geteuid", 4321)):
            with self.subTest(name), mock.patch(f"os.{name}", return_value=there):
                with self.assertLogs("pigeonpost.core.files", "INFO") as logged:
                    close_to_others(self.folder)
                self.assertIn(f"chmod 700 {self.folder}", logged.output[0])
                self.assertEqual(self.mode(), 0o755)

    def test_impossible_data_folder_raises_disk_error(self):
        with self.assertRaisesRegex(DiskError, "choose a writable folder with --data DIR"):
            close_to_others("/proc/nothing/here")


@unittest.skipUnless(os.geteuid() == 0, "only root can give files to others")
class FilesOfRoot(unittest.TestCase):
    """Tests of the owner of files that root creates in another user's folder."""

    def setUp(self):
        self.folder = os.path.join(temp_folder(self), "data")
        os.mkdir(self.folder, 0o700)
        os.chown(self.folder, 1234, 1235)

    def assert_given(self, path, count):
        inner = [os.path.join(place, name) for place, folders, names in os.walk(path) for name in folders + names]
        found = [path, *inner]
        self.assertEqual(len(found), count, found)
        for one in found:
            status = os.lstat(one)
            self.assertEqual((status.st_uid, status.st_gid), (1234, 1235), one)

    def test_files_belong_to_the_owner_of_the_folder(self):
        replace_file(os.path.join(self.folder, "tokens.json"), b"x")
        os.close(lock_data_dir(os.path.join(self.folder, "server.lock")))
        make_folder(os.path.join(self.folder, "logs", "deep"))
        JsonFile(os.path.join(self.folder, "users.json"), "", str).write({})
        self.assert_given(self.folder, 7)

    def test_files_in_a_folder_of_root_belong_to_root(self):
        path = os.path.join(temp_folder(self), "x")
        replace_file(path, b"")
        self.assertEqual(os.stat(path).st_uid, 0)

    def test_links_in_the_folder_are_not_followed(self):
        victim = os.path.join(temp_folder(self), "victim")
        with open(victim, "w", encoding="ascii") as file:
            file.write("root's own")
        path = os.path.join(self.folder, "tokens.json")
        for lay in (os.symlink, os.link):
            lay(victim, f"{path}.new" if lay is os.symlink else os.path.join(self.folder, "server.lock"))
            with contextlib.suppress(DiskError):
                replace_file(path, b"x")
            with contextlib.suppress(DiskError):
                os.close(lock_data_dir(os.path.join(self.folder, "server.lock")))
            give_to_owner(os.path.join(self.folder, "server.lock"))
            self.assertEqual(os.stat(victim).st_uid, 0)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"{path}.new")
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(self.folder, "server.lock"))
            if lay is os.symlink:
                with open(victim, encoding="ascii") as file:
                    self.assertEqual(file.read(), "root's own")


class FileSystems(unittest.TestCase):
    def test_type_of_a_file_system_is_returned(self):
        self.assertEqual(kind_of_filesystem("/proc"), "proc")
        self.assertEqual(kind_of_filesystem("/proc/self/fd"), "proc")
        link = os.path.join(temp_folder(self), "link")
        os.symlink("/proc/self", link)
        self.assertEqual(kind_of_filesystem(link), "proc")

    def test_longest_matching_mount_point_is_used(self):
        mounts = "none / ext4 rw 0 0\nnone /da overlay rw 0 0\nnone /data tmpfs rw 0 0\nnone /a\\040b vfat rw 0 0\n"
        with mock.patch.object(files, "open", mock.mock_open(read_data=mounts), create=True):
            for folder, kind in (("/data/x", "tmpfs"), ("/database", "ext4"), ("/", "ext4"), ("/a b/c", "vfat")):
                self.assertEqual(kind_of_filesystem(folder), kind, folder)

    def test_unknown_type_of_a_file_system_is_empty(self):
        with mock.patch.object(files, "open", mock.Mock(side_effect=OSError), create=True):
            self.assertEqual(kind_of_filesystem("/"), "")

    def test_parent_folder_is_synced(self):
        synced = []
        folder = temp_folder(self)
        with mock.patch.object(files.os, "fsync", lambda fd: synced.append(os.readlink(f"/proc/self/fd/{fd}"))):
            sync_folder(os.path.join(folder, "file"))
        self.assertEqual(synced, [os.path.realpath(folder)])


if __name__ == "__main__":
    unittest.main()
