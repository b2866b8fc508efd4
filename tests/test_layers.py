"""The house's rules, read from the code's own imports: who may know whom, what a node loads, how long things get."""

import ast
import functools
import json
import os
import subprocess
import sys
import unittest
from typing import NamedTuple

from tests.support import ROOT, clean_environment

# The floor of every file: it files.imports only from lower ones (docs/way.md). Members of a room stand on MEMBERS.
STOREYS = {
    0: "base.errors base.clock base.net base.version base bus files web",
    1: "base.multicast base.config base.fetch base.disk base.running files.tar_reader",
    2: "protocol bus.packets web.head broker base.json_file",
    3: (
        "settings sensors links stores gate pages watch ring session web.connections disk_use errands web.client "
        "web.tls bus.old_config bus.state files.multipart files.log_sums"
    ),
    4: (
        "files.received files.tables web.server adc sampler outbox wire csvbuffer session_server daybook diary "
        "verdicts lateness bus.component"
    ),
    5: "files.log_files files.old_tables listing intake guests stream parcels",
    6: "files.imports files.postgres_tables session_node",
    8: "files.backups web.door demo commands",
    9: "webui",
    10: "node server control",
}
FLOORS = {name: floor for floor, names in STOREYS.items() for name in names.split()}
MEMBERS = 7
GROUPS = ("bus", "files", "web")  # folders of files that belong together, each on its own floor
ROOMS = ("sensors", "links", "stores", "gate", "pages", "watch")
COMMANDS = 9  # the files in commands/: each is a program's upper half, and may use what it likes below
LONGEST_FUNCTION = 60
LONGEST_FILE = 450
# What a node without a token does not load: on a Pi Zero each costs memory that somebody wants for samples.
NOT_ON_A_NODE = (
    "http", "urllib.request", "smtplib", "asyncio", "ssl", "hashlib", "_hashlib", "hmac", "sqlite3", "email", "csv",
    "dataclasses", "spidev", "tomllib", "multiprocessing", "xml", "unittest", "secrets", "webui", "web.server",
    "web.head", "web.door", "intake", "csvbuffer", "server", "control", "commands", "demo", "stores", "pages", "gate",
    "tests", "session_server",
)  # fmt: skip


class Import(NamedTuple):
    module: str
    line: int
    at_top: bool  # it runs when the module is loaded
    for_types: bool  # under `if TYPE_CHECKING:`


class Facts(NamedTuple):
    """What is looked at of a file. Its tree is not kept: all of them together are half a million objects."""

    card: str
    imports: list[Import]
    functions: list[tuple[str, int]]  # line and name, and how many lines it has
    actions: list[tuple[int, str]]  # line and text of what is no definition, and runs when the file is loaded


def product_files():
    """Every file of the program, as paths from the root."""
    files = [name for name in os.listdir(ROOT) if name.endswith(".py")]
    for room in ("base", "commands", *GROUPS, *ROOMS):
        for folder, _, names in os.walk(os.path.join(ROOT, room)):
            files += [os.path.relpath(os.path.join(folder, name), ROOT) for name in names if name.endswith(".py")]
    return sorted(files)


def module_of(path):
    return path.removesuffix(".py").removesuffix("/__init__").replace(os.sep, ".")


FILES = {module_of(path): path for path in product_files()}


@functools.cache
def facts(module):
    with open(os.path.join(ROOT, FILES[module]), encoding="utf-8") as file:
        tree = ast.parse(file.read(), FILES[module])
    functions = [
        (f"{node.lineno} {node.name}", node.end_lineno - node.lineno + 1)
        for node in statements(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    return Facts(ast.get_docstring(tree) or "", imports_of(tree), functions, actions_of(tree))


def all_imports():
    """Every file of the program with its imports."""
    for module in FILES:
        yield module, facts(module).imports


def statements(node):
    """All statements below a node, at whatever depth."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.expr):  # in which there is no statement
            yield child
            yield from statements(child)


def imports_of(tree):
    """All imports of a file, at whatever depth; `from room import member` counts as importing the member too."""
    found = []

    def walk(node, at_top, for_types):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                found.extend(Import(alias.name, child.lineno, at_top, for_types) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert not child.level, f"a relative import in line {child.lineno}"
                found.append(Import(child.module, child.lineno, at_top, for_types))
                members = (f"{child.module}.{alias.name}" for alias in child.names)
                found.extend(Import(name, child.lineno, at_top, for_types) for name in members if name in FILES)
            elif isinstance(child, ast.expr):  # in which there is no statement
                continue
            elif isinstance(child, ast.If) and is_for_types(child.test):
                for part in child.body:
                    walk(ast.Module([part], []), at_top, True)
                for part in child.orelse:
                    walk(ast.Module([part], []), at_top, for_types)
            else:
                function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
                walk(child, at_top and not function, for_types)

    walk(tree, True, False)
    return found


def is_for_types(test):
    """Whether a condition is TYPE_CHECKING or typing.TYPE_CHECKING."""
    return isinstance(test, ast.Name | ast.Attribute) and ast.unparse(test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def actions_of(tree):
    """What a file does when it is loaded, beside defining things."""
    allowed = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign)
    found = []
    for node in tree.body:
        docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        guard = isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "__name__ == '__main__'")
        fills_a_table = isinstance(node, ast.Expr) and ".update(" in ast.unparse(node)[:40]
        if not (docstring or guard or fills_a_table or isinstance(node, allowed)):
            found.append((node.lineno, ast.unparse(node)[:80]))
    return found


def room_of(module):
    return module.partition(".")[0] if module.partition(".")[0] in ROOMS else None


def member_of(module):
    """A member may have more than one file: stores/sqlite_schema.py belongs to stores/sqlite.py, which imports it."""
    return module.partition("_")[0]


def floor_of(module):
    if module in FLOORS:
        return FLOORS[module]
    if module.startswith("commands."):
        return COMMANDS
    return MEMBERS if room_of(module) else None


def ours(module):
    return module in FILES or module.partition(".")[0] in FLOORS


class Imports(unittest.TestCase):
    def all_at_runtime(self):
        for module, imports in all_imports():
            for entry in imports:
                if not entry.for_types:
                    yield module, entry

    def assert_none(self, found):
        self.assertEqual([], found, "\n" + "\n".join(found))

    def test_the_test_itself_sees_imports(self):
        tree = ast.parse(
            "import a.b\nfrom c import d\nif TYPE_CHECKING:\n    from e import f\nelse:\n    import g\n"
            "def h():\n    import i\nclass J:\n    import k\ntry:\n    import l\nexcept ImportError:\n    pass\n"
        )
        self.assertEqual(
            [tuple(entry) for entry in imports_of(tree)],
            [
                ("a.b", 1, True, False), ("c", 2, True, False), ("e", 4, True, True), ("g", 6, True, False),
                ("i", 8, False, False), ("k", 10, True, False), ("l", 12, True, False),
            ],
        )  # fmt: skip
        self.assertIn("links.tcp", [entry.module for entry in facts("node").imports])

    def test_every_file_has_its_floor(self):
        self.assert_none([path for module, path in FILES.items() if floor_of(module) is None])

    def test_a_file_imports_only_from_lower_floors(self):
        wrong = []
        for module, entry in self.all_at_runtime():
            floor = floor_of(entry.module) if ours(entry.module) else None
            if floor is None:
                continue
            own_contract = room_of(module) and member_of(entry.module) in (room_of(module), member_of(module))
            if floor >= floor_of(module) and not own_contract:
                wrong.append(
                    f"{FILES[module]}:{entry.line}: {module} (floor {floor_of(module)}) imports"
                    f" {entry.module} (floor {floor})"
                )
        self.assert_none(wrong)

    def test_rooms_do_not_import_each_other(self):
        self.assert_none([
            f"{FILES[module]}:{entry.line}: {module} imports {entry.module}"
            for module, entry in self.all_at_runtime()
            if room_of(module) and room_of(entry.module) not in (None, room_of(module))
        ])  # fmt: skip

    def test_two_members_of_a_room_share_only_the_contract(self):
        self.assert_none([
            f"{FILES[module]}:{entry.line}: {module} imports {entry.module}"
            for module, entry in self.all_at_runtime()
            if room_of(module) and room_of(entry.module) == room_of(module) and entry.module != room_of(module)
            and member_of(entry.module) != member_of(module)
        ])  # fmt: skip

    def test_nothing_below_the_rooms_knows_a_member(self):
        self.assert_none([
            f"{FILES[module]}:{entry.line}: {module} imports {entry.module}"
            for module, entry in self.all_at_runtime()
            if floor_of(module) < MEMBERS and "." in entry.module and room_of(entry.module)
        ])  # fmt: skip

    def test_only_the_program_and_pythons_own_library_is_imported_at_the_top_of_a_file(self):
        self.assert_none([
            f"{FILES[module]}:{entry.line}: {entry.module}"
            for module, entry in self.all_at_runtime()
            if entry.at_top and not ours(entry.module) and entry.module.partition(".")[0] not in sys.stdlib_module_names
        ])  # fmt: skip

    def test_a_library_that_is_not_pythons_is_imported_by_the_one_member_that_needs_it(self):
        allowed = {
            ("adc", "spidev"),
            ("broker", "paho.mqtt.client"),
            ("files.postgres_tables", "psycopg"),
            ("sensors.mcp3424", "smbus2"),
            ("stores.postgres_link", "psycopg"),
            ("stores.redis_mirror", "redis"),
        }
        found = {
            (module, entry.module)
            for module, entry in self.all_at_runtime()
            if not ours(entry.module) and entry.module.partition(".")[0] not in sys.stdlib_module_names
        }
        self.assertEqual(found, allowed)

    def test_tests_and_measurements_are_not_part_of_the_program(self):
        for module, imports in all_imports():
            for entry in imports:
                self.assertNotIn(entry.module.partition(".")[0], ("tests", "bench"), module)

    def test_no_name_of_ours_hides_one_of_pythons(self):
        for module in FILES:
            self.assertNotIn(module.partition(".")[0], sys.stdlib_module_names)


class Files(unittest.TestCase):
    def test_no_file_is_too_long(self):
        for path in FILES.values():
            with open(os.path.join(ROOT, path), encoding="utf-8") as file:
                lines = len(file.readlines())
            with self.subTest(path):
                self.assertLessEqual(lines, LONGEST_FILE)

    def test_no_function_is_too_long(self):
        lengths = {
            f"{path}:{function}": lines for module, path in FILES.items() for function, lines in facts(module).functions
        }
        self.assertGreater(len(lengths), 1000)
        self.assertEqual({}, {name: lines for name, lines in lengths.items() if lines > LONGEST_FUNCTION})

    def test_every_file_opens_with_its_card(self):
        for module, path in FILES.items():
            with self.subTest(path):
                card = facts(module).card
                self.assertIn("Runs on", card)
                self.assertRegex(card.splitlines()[0], r"^[A-Z0-9].*[.:,\w]$")

    def test_nothing_is_done_when_a_file_is_loaded(self):
        """Definitions only: no call whose result nobody keeps, no loop, no file, no thread."""
        self.assertEqual([], [
            f"{path}:{line}: {text}" for module, path in FILES.items() for line, text in facts(module).actions
        ])  # fmt: skip


EACH_ALONE = """
import importlib, sys
from importlib.machinery import SourceFileLoader

codes, read = {}, SourceFileLoader.get_code

def get_code(loader, name):  # compiled once, run again and again
    if name not in codes:
        codes[name] = read(loader, name)
    return codes[name]

SourceFileLoader.get_code = get_code
for module in MODULES:
    importlib.import_module(module)
    for name in FILES:
        sys.modules.pop(name, None)
"""


class Loaded(unittest.TestCase):
    def loaded_by(self, code):
        """The modules that a fresh Python has after `code`."""
        code += "\nimport sys, json; print(json.dumps(sorted(sys.modules)))"
        # -S: what a site's own .pth files load is not ours; -I would leave out our folder too.
        result = subprocess.run(
            [sys.executable, "-S", "-c", code], cwd=ROOT, env=clean_environment(PYTHONPATH=ROOT),
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        self.assertEqual(result.returncode, 0, result.stderr)
        return set(json.loads(result.stdout))

    def test_what_a_node_loads(self):
        loaded = self.loaded_by("import node")
        self.assertIn("session_node", loaded)
        found = [name for name in loaded for bad in NOT_ON_A_NODE if name == bad or name.startswith(bad + ".")]
        self.assertEqual(found, [])

    def test_every_module_can_be_loaded_alone(self):
        """In any order, so that there is no circle in which it matters who comes first."""
        modules = [module for module in FILES if module not in ("node", "server", "control")]
        self.assertNotIn("tests", self.loaded_by(f"MODULES, FILES = {modules!r}, {sorted(FILES)!r}\n{EACH_ALONE}"))


if __name__ == "__main__":
    unittest.main()
