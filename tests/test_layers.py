"""Rules of the layout, checked by the code's own imports: order of packages, libraries, size of files, a light node.

docs/architecture.md describes the purpose of each package.
"""

import ast
import functools
import graphlib
import json
import os
import subprocess
import sys
import unittest
from typing import NamedTuple

from tests.support import ROOT, clean_environment, temp_folder

PACKAGE = "pigeonpost"
PROGRAMS = ("node", "server", "control")
# From the lowest level to the highest: a module imports from lower levels and from its own package. Names are those
# below `pigeonpost` or at the root; the longest that fits counts, so sensors.contract is lower than sensors.
LEVELS = (
    "core",
    "link",
    "protocol http",
    "integration_settings client",
    "settings auth sensors.contract storage.models",
    "charts adc sensors",
    "sensors.registry",
    "node storage",
    "csvbuffer",
    "server",
    "importing",
    "transports",
    "alerts integrations",
    "web",
    "views cli",
    "compat",
    "webui",
    "PROGRAMS",
)
LEVEL_OF = {name: level for level, names in enumerate(LEVELS) for name in names.split()}
LONGEST_FUNCTION = 60  # lines, without docstrings
GUARDS = ("TYPE_CHECKING", "__name__ == '__main__'", "sys.version_info < (3, 11)")  # `if`s outside of functions
LONGEST_FILE = 450  # lines, without docstrings: complete documentation must not count against a file
LONGEST_WITH_DOCSTRINGS = 550
# A node without a token loads none of these: on a Pi Zero each costs memory that the samples could have.
NOT_ON_A_NODE = (
    "http", "urllib.request", "smtplib", "asyncio", "ssl", "hashlib", "_hashlib", "hmac", "sqlite3", "email", "csv",
    "dataclasses", "spidev", "tomllib", "multiprocessing", "xml", "unittest", "secrets", "webui", "csvbuffer", "server",
    "control", "tests", "pigeonpost.server", "pigeonpost.storage", "pigeonpost.web", "pigeonpost.views",
    "pigeonpost.http", "pigeonpost.cli", "pigeonpost.compat", "pigeonpost.alerts", "pigeonpost.charts",
    "pigeonpost.importing", "typing", "argparse", "gettext", "shutil", "queue", "random", "datetime",
)  # fmt: skip
# A library that is not Python's own: the one module that imports it, when it makes a connection or opens a device.
LIBRARIES = {
    ("adc", "spidev"),
    ("pigeonpost.core.mqtt_client", "paho.mqtt.client"),
    ("pigeonpost.importing.foreign_postgres", "psycopg"),
    ("pigeonpost.sensors.mcp3424", "smbus2"),
    ("pigeonpost.storage.postgres.pool", "psycopg"),
    ("pigeonpost.storage.redis_publisher", "redis"),
}


class Import(NamedTuple):
    module: str
    line: int
    at_top: bool  # it runs when the module is loaded
    for_types: bool  # under `if TYPE_CHECKING:`


class Facts(NamedTuple):
    """Facts about a module. Syntax trees are not kept: all of them together are half a million objects."""

    docstring: str
    imports: list[Import]
    functions: list[tuple[str, int]]  # line and name, and its number of lines without docstrings
    actions: list[tuple[int, str]]  # line and text of statements that run at import and define nothing
    lines: int  # of the file, without docstrings
    lines_with_docstrings: int


def product_files():
    """Return the paths of all files of the program, from the root."""
    files = [name for name in os.listdir(ROOT) if name.endswith(".py")]
    for folder, _, names in os.walk(os.path.join(ROOT, PACKAGE)):
        files += [os.path.relpath(os.path.join(folder, name), ROOT) for name in names if name.endswith(".py")]
    return sorted(files)


def module_of(path):
    return path.removesuffix(".py").removesuffix("/__init__").replace(os.sep, ".")


FILES = {module_of(path): path for path in product_files()}


@functools.cache
def info(module):
    with open(os.path.join(ROOT, FILES[module]), encoding="utf-8") as file:
        text = file.read()
    tree = ast.parse(text, FILES[module])
    functions = [
        (f"{node.lineno} {node.name}", node.end_lineno - node.lineno + 1 - docstring_lines(node))
        for node in statements(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    lines = len(text.splitlines())
    without = lines - docstring_lines(tree)
    return Facts(ast.get_docstring(tree) or "", imports_of(tree), functions, actions_of(tree), without, lines)


def docstring_lines(tree):
    """Return the number of lines of all docstrings in a syntax tree."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    return sum(
        node.body[0].end_lineno - node.body[0].lineno + 1
        for node in (tree, *statements(tree))
        if isinstance(node, documented) and ast.get_docstring(node) is not None
    )


def all_imports():
    """Yield each module with its imports of other modules of the program."""
    for module in FILES:
        yield module, [entry for entry in info(module).imports if entry.module in FILES]


def statements(node):
    """Yield all statements below a node, at any depth."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.expr):  # in which there is no statement
            yield child
            yield from statements(child)


def imports_of(tree):
    """Return all imports of a module, at any depth.

    `from package import module` is an import of that module alone.
    """
    found = []

    def walk(node, at_top, for_types):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                found.extend(Import(alias.name, child.lineno, at_top, for_types) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert not child.level, f"a relative import in line {child.lineno}"
                members = [f"{child.module}.{alias.name}" for alias in child.names]
                modules = [name for name in members if name in FILES]
                if len(modules) < len(members):
                    modules.append(child.module)
                found.extend(Import(name, child.lineno, at_top, for_types) for name in modules)
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
    """Returns True for the conditions TYPE_CHECKING and typing.TYPE_CHECKING."""
    return isinstance(test, ast.Name | ast.Attribute) and ast.unparse(test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def actions_of(tree):
    """Return the statements of a module that run when it is loaded and define nothing."""
    allowed = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign)
    found = []
    for node in tree.body:
        docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        guard = isinstance(node, ast.If) and ast.unparse(node.test) in GUARDS
        fills_a_table = isinstance(node, ast.Expr) and ".update(" in ast.unparse(node)[:40]
        if not (docstring or guard or fills_a_table or isinstance(node, allowed)):
            found.append((node.lineno, ast.unparse(node)[:80]))
    return found


def place_of(module):
    """The name in LEVELS that stands for a module: the longest that fits."""
    if module in PROGRAMS:
        return "PROGRAMS"
    parts = module.removeprefix(f"{PACKAGE}.").split(".")
    names = (".".join(parts[:count]) for count in range(len(parts), 0, -1))
    return next((name for name in names if name in LEVEL_OF), None)


def level_of(module):
    """Return the level of a module: that of the longest name in LEVELS that matches."""
    return LEVEL_OF[place_of(module)]


def package_of(module):
    """Return the package directly below `pigeonpost` that contains a module, or the module itself."""
    parts = module.split(".")
    return parts[1] if parts[0] == PACKAGE and len(parts) > 1 else module


class Imports(unittest.TestCase):
    def assert_none(self, found):
        self.assertEqual([], found, "\n" + "\n".join(found))

    def test_imports_are_found_wherever_they_stand(self):
        tree = ast.parse(
            "import a.b\nfrom c import d\nif TYPE_CHECKING:\n    from e import f\nelse:\n    import g\n"
            "def h():\n    import i\nclass J:\n    import k\ntry:\n    import l\nexcept ImportError:\n    pass\n"
            "from pigeonpost.core import clock\nfrom pigeonpost.core.clock import Clock\n"
        )
        self.assertEqual(
            [tuple(entry) for entry in imports_of(tree)],
            [
                ("a.b", 1, True, False), ("c", 2, True, False), ("e", 4, True, True), ("g", 6, True, False),
                ("i", 8, False, False), ("k", 10, True, False), ("l", 12, True, False),
                ("pigeonpost.core.clock", 15, True, False), ("pigeonpost.core.clock", 16, True, False),
            ],
        )  # fmt: skip
        self.assertIn("protocol", [entry.module for entry in info("node").imports])

    def test_every_module_has_its_level(self):
        self.assert_none([path for module, path in FILES.items() if module != PACKAGE and not place_of(module)])

    def test_modules_import_only_from_lower_levels_and_their_own_package(self):
        self.assert_none([
            f"{FILES[module]}:{entry.line}: {place_of(module)} imports {entry.module}"
            for module, imports in all_imports()
            for entry in imports
            if level_of(entry.module) > level_of(module)
            or (level_of(entry.module) == level_of(module) and package_of(entry.module) != package_of(module))
        ])  # fmt: skip

    def test_there_is_no_circle_of_imports_at_run_time_or_for_types(self):
        sorter = graphlib.TopologicalSorter({
            module: {entry.module for entry in imports if entry.module != module} for module, imports in all_imports()
        })  # fmt: skip
        sorter.prepare()  # raises CycleError, which names the modules

    def test_packages_have_a_docstring_and_no_code(self):
        for module, path in FILES.items():
            if path.endswith("__init__.py"):
                with self.subTest(path):
                    found = info(module)
                    self.assertTrue(found.docstring)
                    with open(os.path.join(ROOT, path), encoding="utf-8") as file:
                        self.assertEqual(len(ast.parse(file.read()).body), 1)

    def test_modules_are_imported_by_statements_not_by_strings(self):
        self.assert_none([
            f"{FILES[module]}:{entry.line}" for module in FILES for entry in info(module).imports
            if entry.module == "importlib"
        ])  # fmt: skip

    def test_a_nodes_half_of_a_transport_knows_nothing_of_the_servers_half(self):
        self.assert_none([
            f"{FILES[module]}:{entry.line}: {module} imports {entry.module}"
            for module, imports in all_imports()
            for entry in imports
            if {end_of(module), end_of(entry.module)} == {"node", "server"}
        ])  # fmt: skip

    def test_only_pythons_own_library_is_imported_at_the_top_of_a_module(self):
        self.assert_none([
            f"{FILES[module]}:{entry.line}: {entry.module}"
            for module in FILES
            for entry in info(module).imports
            if entry.at_top and not entry.for_types and is_foreign(entry.module)
        ])  # fmt: skip

    def test_a_library_that_is_not_pythons_is_imported_by_one_module(self):
        found = {
            (module, entry.module)
            for module in FILES
            for entry in info(module).imports
            if is_foreign(entry.module)
        }  # fmt: skip
        self.assertEqual(found, LIBRARIES)

    def test_compat_is_known_to_the_programs_alone(self):
        self.assert_none([
            f"{FILES[module]}:{entry.line}: {module} imports {entry.module}"
            for module, imports in all_imports()
            for entry in imports
            if package_of(entry.module) == "compat" and package_of(module) != "compat" and module not in PROGRAMS
        ])  # fmt: skip

    def test_tests_and_measurements_are_not_part_of_the_program(self):
        for module in FILES:
            for entry in info(module).imports:
                self.assertNotIn(entry.module.partition(".")[0], ("tests", "bench"), module)

    def test_no_module_at_the_root_hides_one_of_pythons(self):
        for module in FILES:
            self.assertNotIn(module.partition(".")[0], sys.stdlib_module_names)


def end_of(module):
    """Return "node" or "server" for a module that runs on one end of a transport only; None for all other modules."""
    if package_of(module) not in ("transports", "compat"):
        return None
    name = f"_{module.rpartition('.')[2]}"
    return next((end for end in ("node", "server") if f"_{end}" in name), None)


def is_foreign(module):
    """Return True for modules that are neither part of the program nor of Python's library."""
    return module not in FILES and module.partition(".")[0] not in sys.stdlib_module_names


class Files(unittest.TestCase):
    def test_no_file_is_too_long(self):
        for module, path in FILES.items():
            with self.subTest(path):
                self.assertLessEqual(info(module).lines, LONGEST_FILE)
                self.assertLessEqual(info(module).lines_with_docstrings, LONGEST_WITH_DOCSTRINGS)

    def test_no_function_is_too_long(self):
        lengths = {
            f"{path}:{function}": lines for module, path in FILES.items() for function, lines in info(module).functions
        }
        self.assertGreater(len(lengths), 1000)
        self.assertEqual({}, {name: lines for name, lines in lengths.items() if lines > LONGEST_FUNCTION})

    def test_every_module_has_a_header(self):
        for module, path in FILES.items():
            with self.subTest(path):
                self.assertRegex(info(module).docstring.splitlines()[0], r"^[A-Z0-9].*[.:,\w]$")

    def test_programs_tell_an_older_python_which_one_they_need(self):
        """The version is checked before the program's own imports. Python 3.8 can read the file up to there."""
        for program in PROGRAMS:
            with open(os.path.join(ROOT, f"{program}.py"), encoding="utf-8") as file:
                tree = ast.parse(file.read(), feature_version=(3, 8))
            first = [ast.unparse(node) for node in tree.body[1:4]]
            self.assertEqual(first[:2], ["from __future__ import annotations", "import sys"])
            self.assertTrue(first[2].startswith("if sys.version_info < (3, 11):"), first[2])

    def test_loading_a_file_only_makes_definitions(self):
        """There is no call whose result is unused, no loop, no file and no thread."""
        self.assertEqual([], [
            f"{path}:{line}: {text}" for module, path in FILES.items() for line, text in info(module).actions
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


WHOLE_NODE = """
import sys, node
from pigeonpost.core import config
from pigeonpost.settings import NODE

flags = config.read_flags(NODE, ["--simulate", "--data", sys.argv[1]])
node.Node(config.load(NODE, flags, "", environment={"PIGEONPOST_OUTBOX_SLOTS": "64"})).sources[0].read()
"""


class Loaded(unittest.TestCase):
    def loaded_by(self, code, *arguments):
        """Return the names of the modules that a new Python process has loaded after `code`."""
        code += "\nimport sys, json; print(json.dumps(sorted(sys.modules)))"
        # -S: what a site's own .pth files load is not ours; -I would leave out our folder too.
        result = subprocess.run(
            [sys.executable, "-S", "-c", code, *arguments], cwd=ROOT, env=clean_environment(PYTHONPATH=ROOT),
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        self.assertEqual(result.returncode, 0, result.stderr)
        return set(json.loads(result.stdout))

    def test_a_node_loads_little(self):
        loaded = self.loaded_by(WHOLE_NODE, temp_folder(self))
        self.assertIn("pigeonpost.node.outbox", loaded)
        found = [name for name in loaded for bad in NOT_ON_A_NODE if name == bad or name.startswith(bad + ".")]
        self.assertEqual(found, [])

    def test_every_module_can_be_loaded_alone(self):
        """Modules can be loaded in any order: there is no import cycle."""
        modules = [module for module in FILES if module not in PROGRAMS]
        self.assertNotIn("tests", self.loaded_by(f"MODULES, FILES = {modules!r}, {sorted(FILES)!r}\n{EACH_ALONE}"))


if __name__ == "__main__":
    unittest.main()
