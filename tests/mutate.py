"""Mutation testing: checks that a test fails if one place of the code is wrong. Not in CI: it takes half an hour.

    python3 -m tests.mutate                          150 mutants of each module in TARGETS
    python3 -m tests.mutate ring_file --count 20     of one of them, fewer
    python3 -m tests.mutate ring_file --seed 7       other mutants

A mutant is a copy of the tree with one small fault in one module: a changed operator or constant, an inverted
condition, or a deleted statement. It is killed if its focused tests fail, or do not end in time. Surviving mutants are
printed with their lines: each shows a missing test, or an equivalent change.
"""

import argparse
import ast
import concurrent.futures
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.support import ROOT

TARGETS = {
    "ring_file": ("pigeonpost/node/ring_file.py", ["tests.node.test_ring_file", "tests.node.test_ring_repair"]),
    "send_cursor": (
        "pigeonpost/node/send_cursor.py",
        ["tests.node.test_send_cursor", "tests.transports.test_tcp_session.StreamingColumns"],
    ),
    "node_session": ("pigeonpost/transports/tcp_node_session.py", ["tests.transports.test_tcp_session"]),
    "server_session": (
        "pigeonpost/transports/tcp_server_session.py",
        [
            "tests.transports.test_tcp_session",
            "tests.transports.test_tcp_faults.Sentences",
            "tests.transports.test_tcp_faults.Rotated",
        ],
    ),
    "ingest": (
        "pigeonpost/server/ingest.py",
        ["tests.server.test_ingest", "tests.server.test_node_limits", "tests.server.test_node_admin"],
    ),
    "commit_plan": (
        "pigeonpost/server/commit_plan.py",
        ["tests.server.test_commit_plan", "tests.server.test_ingest", "tests.server.test_node_limits"],
    ),
    "compaction": ("pigeonpost/storage/sqlite/compaction.py", ["tests.storage.sqlite.test_compaction"]),
}
LIMIT_S = 5.0  # in addition to five times the duration without a mutant, so that an endless loop is killed

_SWAPS = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.FloorDiv, ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult,
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And,
    ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
}  # fmt: skip
_SAID_ONLY = ("log.", "self._warn(", "super()._warn(", "self._rare_log.log(")  # statements that only report something
_LEFT_OUT = (ast.Expr, ast.Assign, ast.AugAssign, ast.Raise)  # a mutant is made without such a statement
_NOT_RUN = frozenset({"annotation", "returns"})  # fields with types


def _changeable(node):
    """Yield the node and the nodes in it, without those that only report something: logs, error texts, types."""
    yield node
    for name, field in ast.iter_fields(node):
        if name in _NOT_RUN or isinstance(node, ast.Raise):
            continue
        for child in field if isinstance(field, list) else [field]:
            if isinstance(child, ast.AST) and not _only_says(child):
                yield from _changeable(child)


def _only_says(node):
    if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
        return True
    return isinstance(node, ast.Expr) and (
        isinstance(node.value, ast.Constant) or ast.unparse(node).startswith(_SAID_ONLY)
    )


def places(tree):
    """Yield (line, function that changes the tree at one place) for every mutant of a module."""
    for node in _changeable(tree):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Compare) and type(node.ops[0]) in _SWAPS:
            yield line, lambda node=node: node.ops.__setitem__(0, _SWAPS[type(node.ops[0])]())
        elif isinstance(node, ast.BinOp | ast.BoolOp | ast.AugAssign) and type(node.op) in _SWAPS:
            yield line, lambda node=node: setattr(node, "op", _SWAPS[type(node.op)]())
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            yield line, lambda node=node: setattr(node, "operand", ast.UnaryOp(ast.Not(), node.operand))
        elif isinstance(node, ast.If | ast.While | ast.IfExp):
            yield line, lambda node=node: setattr(node, "test", ast.UnaryOp(ast.Not(), node.test))
        elif isinstance(node, ast.Constant) and type(node.value) in (int, bool):
            yield line, lambda node=node: setattr(node, "value", _other(node.value))
        for name in ("body", "orelse", "finalbody"):
            body = getattr(node, name, None)
            if isinstance(node, ast.Module | ast.ClassDef) or not isinstance(body, list):
                continue
            for at, statement in enumerate(body):
                if isinstance(statement, _LEFT_OUT) and not _only_says(statement):
                    yield statement.lineno, lambda body=body, at=at: body.__setitem__(at, ast.Pass())


def _other(value):
    return not value if isinstance(value, bool) else value + 1


def mutated(source, number):
    """Return the source with mutant `number`, the line, and this line before and after."""
    tree = ast.parse(source)
    line, change = list(places(tree))[number]
    before = ast.unparse(tree).splitlines()
    change()
    ast.fix_missing_locations(tree)
    text = ast.unparse(tree)
    differs = [pair for pair in zip(before, text.splitlines()) if pair[0] != pair[1]]
    return text, line, differs[0] if differs else ("", "")


def is_killed(tree, tests, limit_s):
    """Return True if the tests fail in a copy of the tree."""
    command = [sys.executable, "-m", "unittest", "-f", *tests]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        ended = subprocess.run(command, cwd=tree, env=environment, capture_output=True, timeout=limit_s, check=False)
    except subprocess.TimeoutExpired:
        return True
    return ended.returncode != 0


def copy_tree(folder):
    """Copy the program and its tests, and return the path of the copy."""
    tree = os.path.join(folder, "tree")
    shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(".git", "__pycache__", "*.pyc", "pictures"))
    return tree


def run(name, count, seed, workers):
    """Try mutants of one target. Returns their number, and the survivors."""
    path, tests = TARGETS[name]
    source = Path(ROOT, path).read_text(encoding="utf-8")
    total = len(list(places(ast.parse(source))))
    chosen = random.Random(seed).sample(range(total), min(count, total))
    alive = []
    with tempfile.TemporaryDirectory() as folder:
        trees = [copy_tree(os.path.join(folder, str(worker))) for worker in range(workers)]
        began_s = time.monotonic()
        if is_killed(trees[0], tests, 60 * LIMIT_S):
            raise SystemExit(f"{name}: the tests fail without a mutant: {' '.join(tests)}")
        limit_s = LIMIT_S + 5 * (time.monotonic() - began_s)

        def one(number):
            text, line, (before, after) = mutated(source, number)
            if not before:
                return None  # it is the same code
            tree = trees.pop()
            try:
                Path(tree, path).write_text(text, encoding="utf-8")
                return None if is_killed(tree, tests, limit_s) else (line, before.strip(), after.strip())
            finally:
                Path(tree, path).write_text(source, encoding="utf-8")
                trees.append(tree)

        with concurrent.futures.ThreadPoolExecutor(workers) as pool:
            alive = [found for found in pool.map(one, chosen) if found is not None]
    return len(chosen), sorted(alive)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("targets", nargs="*", help=f"of {', '.join(TARGETS)}; none: all")
    parser.add_argument("--count", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    options = parser.parse_args()
    for name in options.targets or TARGETS:
        count, alive = run(name, options.count, options.seed, options.workers)
        print(
            f"{name}: {count - len(alive)} of {count} killed ({100 * (count - len(alive)) / count:.0f} %)", flush=True
        )
        for line, before, after in alive:
            print(f"    {TARGETS[name][0]}:{line}: {before}  ->  {after}", flush=True)


if __name__ == "__main__":
    main()
