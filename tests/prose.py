"""Collects the text that people read in the program and its documents, and finds what CONTRIBUTING.md rules out.

python3 -m tests.prose [PATH ...]    print the findings below these paths (default: everything)
"""

from __future__ import annotations

import ast
import io
import os
import re
import subprocess
import sys
import tokenize
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from tests.support import ROOT

# Phrases that a reader of the field has to translate, each with what to write instead. Case is ignored.
PHRASES = {
    r"anew": "again; new",
    r"reckon\w*": "calculate",
    r"who(so)?ever": "a client that; the user who",
    r"of which": "whose; two sentences",
    r"by way of": "via; through",
    r"stands? in\b(?! for)": "is in; is written in",
    r"comes? along": "arrives",
    r"(is|are|was|were|be|been) told\b": "is reported; receives; is notified",
    r"told of": "reported; logged",
    r"(hears?|heard)": "receives; received",
    r"says": "reports; contains; states; returns",
    r"(is|are|was|were|be|been) said\b": "is reported; is logged; is documented",
    r"strangers?": "untrusted client; unauthenticated client",
    r"faults? of (this|the) program": "internal error",
    r"the house": "the web interface",
    r"(a|the|no|more) rooms?": "space; capacity",
    r"(a|the) roads?": "transport",
    r"(a|the) doors?": "access control",
    r"guests|(a|the|our) guest": "external client",
    r"errands?": "command",
    r"parcels?": "package; payload",
    r"(he|him|his|she|her)": "they; the user; the client",
    r"of ours": "of this program; Pigeonpost's",
    r"in vain": "without success",
    r"for ever": "forever; permanently; without limit",
    r"at hand": "available; in memory",
    r"whatever": "regardless of; any",
    r"nothing of (it|them)": "none of it",
    r"(a|an|one) (value|line|fault|sensor|file|row|sample|node|name|thread) an? \w+": "one per ...",
    r"an? \w+ a (line|fault|file|row|sample|node)": "one per ...",
    r"as far as": "if; where; the part that",
    r"comes? to (stay|stand|lie)": "the literal verb",
    r"goes? (wrong|through for)": "fails",
    r"thereby|hence|thereof|therein|whereby|wherein": "so; in it",
    r"by itself": "automatically",
    r"like(wise)? so": "likewise",
    r"so is\b(?! it)": "also",
    r"(?<!User )nobody|somebody|everybody": "no one; a user; a client; all clients",
    r"(what|that) it is(?=[.;])": "the literal noun",
    r"ma(y|ies) well": "can",
    r"of its own making": "its own",
    r"give(s|n)? back": "return; release",
    r"(have|had|has) to hand": "has",
    r"is for nothing": "is wasted",
    r"does? without": "omits; does not need",
    r"what is (it|there)\b": "the literal noun",
    r"(?<! s )behind(?! (the|an?|another|nginx|Caddy|Apache|it|them|one|your|(\w+ )?prox\w+|NAT))": "after; following",
}  # fmt: skip
_PHRASES = [(re.compile(rf"\b{phrase}\b", re.IGNORECASE), advice) for phrase, advice in PHRASES.items()]

# A headline that is a question, or refers to another docstring instead of stating something.
_QUESTION = re.compile(r"(Which|Who|Whom|Whose|What|How|Where|When|Why|Whether)\b(?! to\b)")
_REFERENCE = re.compile(r"(As|Like|See|Same as) [\w.`]+\.$")
_FOLDERS = ("pigeonpost", "bench", "docs", "deploy", "tests", ".ci")
_BY_ENDING = (
    ".md", ".toml", ".js", ".css", ".service", ".socket", ".conf", ".rules", ".sysusers", ".yaml", ".yml", ".sh"
)  # fmt: skip
_FENCE = re.compile(r"^ *(```|~~~)")
_CODE = re.compile(r"`[^`\n]*`|\]\([^)]*\)|</?[a-zA-Z][^>\n]*>|https?://\S+")

LONGEST_COLUMN = 100  # of a line in a document
LONGEST_SUBJECT = 72  # characters of a commit's subject
SUBJECTS_SINCE = "3db5449"  # older subjects are longer: history is not rewritten

Finding = tuple[str, int, str]  # path from the root, line, message


class PublicItem(NamedTuple):
    """A public function or class, with what its docstring must state."""

    line: int
    name: str
    docstring: str | None
    arguments: tuple[str, ...]
    returns: bool
    raises: tuple[str, ...]


def files(paths: Sequence[str] = ()) -> list[str]:
    """Return the paths of all files with comments or text for people, from the root.

    Args:
        paths: Files and folders; if there are any, only the files in them are returned.

    Raises:
        FileNotFoundError: One of `paths` contains no such file.
    """
    found = []
    for name in sorted(os.listdir(ROOT)):
        if os.path.isfile(os.path.join(ROOT, name)) and name.endswith((".py", *_BY_ENDING)):
            found.append(name)
    for top in _FOLDERS:
        for folder, subfolders, names in os.walk(os.path.join(ROOT, top)):
            subfolders[:] = sorted(one for one in subfolders if one != "__pycache__")
            found += [
                os.path.relpath(os.path.join(folder, name), ROOT)
                for name in sorted(names) if name.endswith((".py", *_BY_ENDING)) or top == ".ci"
            ]  # fmt: skip
    if not paths:
        return found
    below = {one: [path for path in found if path == one or path.startswith(one.rstrip("/") + "/")] for one in paths}
    for one, chosen in below.items():
        if not chosen:
            raise FileNotFoundError(f"{one} is neither a file with text for people nor a folder with such files")
    return sorted({path for chosen in below.values() for path in chosen})


def read(path: str) -> str:
    """Return the text of a file, given by its path from the root."""
    with open(os.path.join(ROOT, path), encoding="utf-8") as file:
        return file.read()


def prose_of(path: str, text: str) -> list[tuple[int, str]]:
    """Return the pieces of prose in a file, each with the number of its first line.

    Python: comments, docstrings and other strings of at least two words. Markdown: the paragraphs outside code blocks.
    Other files: the comments. Consecutive lines are one piece.
    """
    if path.endswith(".py"):
        return _python_prose(text)
    if path.endswith(".md"):
        return _markdown_prose(text)
    return _joined([(k, line) for k, line in enumerate(text.splitlines(), 1) if re.search(r"(^|\s)(#|//|/?\*) ", line)])


def _joined(lines: Iterable[tuple[int, str]]) -> list[tuple[int, str]]:
    """Return pieces of prose from lines with their numbers: consecutive lines are joined, without comment marks."""
    pieces: list[tuple[int, str]] = []
    last = 0
    for number, line in lines:
        plain = re.sub(r"^\s*(#|//|/?\*) ?", "", line)
        if pieces and number == last + 1:
            pieces[-1] = pieces[-1][0], f"{pieces[-1][1]}\n{plain}"
        else:
            pieces.append((number, plain))
        last = number
    return pieces


def _python_prose(text: str) -> list[tuple[int, str]]:
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    comments = [token for token in tokens if token.type == tokenize.COMMENT]
    is_own_line = {token: token.line.lstrip().startswith("#") for token in comments}
    found = _joined((token.start[0], token.string) for token in comments if is_own_line[token])
    found += [(token.start[0], token.string) for token in comments if not is_own_line[token]]
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value.strip():
            found.append((node.lineno, node.value))
    return sorted(found)


def _markdown_prose(text: str) -> list[tuple[int, str]]:
    return _joined((k, line) for k, line in _text_lines(text) if line.strip())


def _text_lines(text: str) -> Iterator[tuple[int, str]]:
    """Yield the lines of a Markdown text outside code blocks, with their numbers."""
    is_code = False
    for k, line in enumerate(text.splitlines(), 1):
        if _FENCE.match(line):
            is_code = not is_code
        elif not is_code and not line.startswith("    "):
            yield k, line


def phrase_findings(path: str, text: str) -> list[Finding]:
    """Return the phrases of PHRASES in the prose of a file."""
    found = []
    for line, piece in prose_of(path, text):
        plain = re.sub(r"[ \t]*\n[ \t]*", "\n", _CODE.sub("``", piece))
        flat = plain.replace("\n", " ")  # a phrase may be broken over two lines, but not over two paragraphs
        for pattern, advice in _PHRASES:
            for match in pattern.finditer(flat):
                at = line + plain[: match.start()].count("\n")
                found.append((path, at, f"`{match[0]}`: write: {advice}"))
    return found


def line_findings(path: str, text: str) -> list[Finding]:
    """Return the lines of a Markdown file that are longer than LONGEST_COLUMN: tables and code blocks excepted."""
    return [
        (path, k, f"{len(line)} columns: at most {LONGEST_COLUMN}")
        for k, line in _text_lines(text)
        if len(line) > LONGEST_COLUMN and not line.startswith("|") and " " in line.strip()
    ]


def headline_findings(path: str, tree: ast.Module) -> list[Finding]:
    """Return docstrings, public or not, whose first line is a question or a reference to another docstring."""
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
            continue
        first = (ast.get_docstring(node) or "").split("\n")[0]
        if _QUESTION.match(first) or _REFERENCE.match(first):
            found.append((path, getattr(node, "lineno", 1), f"headline: {first}"))
    return found


_VAGUE_NAME = re.compile(
    r"test_(what|who|whom|whose|which|how|where|when|why|whether|so|it|its|one|they|them|that|this|nobody|somebody|"
    r"everybody|everything|nothing|something|whoever|whatever|such|also|likewise|others?|anything)(_|$)"
)


def test_name_findings(path: str, tree: ast.Module) -> list[Finding]:
    """Return tests whose names state no behaviour, or contain one of PHRASES.

    A name states no behaviour if it has one word, or begins with a question word or a pronoun.
    """
    return [
        (path, node.lineno, f"{node.name}: state the behaviour: test_SUBJECT_VERB_...")
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
        and (_VAGUE_NAME.match(node.name) or node.name.count("_") < 2 or _has_phrase(node.name.replace("_", " ")))
    ]  # fmt: skip


def _has_phrase(text: str) -> bool:
    return any(pattern.search(text) for pattern, _ in _PHRASES)


def _class_table(trees: dict[str, ast.Module]) -> dict[str, list[ast.ClassDef]]:
    table = defaultdict(list)
    for tree in trees.values():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                table[node.name].append(node)
    return table


def _base_names(node: ast.ClassDef) -> list[str]:
    names = []
    for base in node.bases:
        names.append(_name_of(base.value if isinstance(base, ast.Subscript) else base))
    return names


def _name_of(node: ast.AST) -> str:
    """Return the last part of a dotted name, or an empty string for other expressions."""
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def _inherits_docstring(node: ast.ClassDef, method: str, classes: dict[str, list[ast.ClassDef]]) -> bool:
    for name in _base_names(node):
        for base in (one for one in classes.get(name, ()) if one is not node):  # a base class may have the same name
            if any(
                isinstance(one, ast.FunctionDef) and one.name == method and ast.get_docstring(one) for one in base.body
            ) or _inherits_docstring(base, method, classes):
                return True
    return False


def _raised(node: ast.AST) -> Iterator[str]:
    """Yield the names of the errors that a node raises and does not catch, without those of functions inside it."""
    if isinstance(node, ast.Raise) and node.exc is not None:
        yield _name_of(node.exc.func if isinstance(node.exc, ast.Call) else node.exc)
    caught: set[str] = set()
    if isinstance(node, ast.Try):
        kinds = [handler.type for handler in node.handlers if handler.type is not None]
        caught = {_name_of(name) for kind in kinds for name in ast.walk(kind)}
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, (ast.FunctionDef, ast.Lambda, ast.ClassDef)):
            is_tried = isinstance(node, ast.Try) and child in node.body
            yield from (error for error in _raised(child) if not (is_tried and error in caught))


_NO_RESULT = {"None", "Never", "NoReturn", "Self", ""}
_NOT_ERRORS = {"NotImplementedError", "AssertionError", "SystemExit"}


def _decorators(node: ast.FunctionDef | ast.ClassDef) -> set[str]:
    return {ast.unparse(one).split("(")[0].rpartition(".")[2] for one in node.decorator_list}


def _describe(node: ast.FunctionDef | ast.ClassDef, name: str) -> PublicItem:
    if isinstance(node, ast.ClassDef):
        return PublicItem(node.lineno, name, ast.get_docstring(node), (), False, ())
    arguments = tuple(
        one.arg
        for one in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
        if one.arg not in ("self", "cls") and not one.arg.startswith("_")
    )
    is_value = _decorators(node) & {"property", "cached_property", "setter", "contextmanager"}
    result = ast.unparse(node.returns) if node.returns else ""
    raises = [error for error in _raised(node) if error[:1].isupper() and error not in _NOT_ERRORS]
    docstring = ast.get_docstring(node)
    return PublicItem(node.lineno, name, docstring, arguments, not is_value and result not in _NO_RESULT, tuple(raises))


def public_items(tree: ast.Module, classes: dict[str, list[ast.ClassDef]]) -> list[PublicItem]:
    """Return the public classes, functions and methods of a module that need a docstring of their own.

    A method that overrides a documented one of this project needs none, because its docstring is inherited. Overloads
    need none, because the implementation has it.
    """
    found = []

    def add(parent: ast.AST, prefix: str) -> None:
        for node in ast.iter_child_nodes(parent):
            if isinstance(node, (ast.If, ast.Try)):
                add(node, prefix)
            if not isinstance(node, (ast.FunctionDef, ast.ClassDef)) or node.name.startswith("_"):
                continue
            if "overload" in _decorators(node):
                continue
            is_inherited = isinstance(parent, ast.ClassDef) and _inherits_docstring(parent, node.name, classes)
            if not (is_inherited and not ast.get_docstring(node)):
                one = _describe(node, prefix + node.name)
                found.append(one._replace(arguments=(), returns=False, raises=()) if is_inherited else one)
            if isinstance(node, ast.ClassDef):
                add(node, f"{prefix}{node.name}.")

    add(tree, "")
    return found


def docstring_findings(path: str, items: list[PublicItem]) -> list[Finding]:
    """Return public items without a docstring, or whose docstring lacks an argument, the result or an error raised."""
    found = []
    for item in items:
        text = item.docstring
        if text is None:
            found.append((path, item.line, f"{item.name}: no docstring"))
            continue
        for argument in item.arguments:
            if not re.search(rf"\b{re.escape(argument)}\b", text):
                found.append((path, item.line, f"{item.name}: the argument `{argument}` is not described"))
        if item.returns and not re.search(r"\b(return|yield)(s|ed)?\b", text, re.IGNORECASE):
            found.append((path, item.line, f"{item.name}: the result is not described (`Return ...`, `Yield ...`)"))
        for error in sorted(set(item.raises)):
            if not re.search(rf"\b{error}\b", text):
                found.append((path, item.line, f"{item.name}: the error {error} is not described (`Raises:`)"))
    return found


def is_product(path: str) -> bool:
    """Return True if `path` is a Python file whose public docstrings must be complete: not a test."""
    return path.endswith(".py") and not path.startswith("tests/")


def findings(paths: Sequence[str] = ()) -> list[Finding]:
    """Return everything that CONTRIBUTING.md rules out, in the files below `paths` (empty: in all files)."""
    every = {path: ast.parse(read(path)) for path in files() if path.endswith(".py")}
    classes = _class_table({path: tree for path, tree in every.items() if is_product(path)})
    found: list[Finding] = []
    for path in files(paths):
        text = read(path)
        if path not in ("tests/prose.py", "tests/test_prose.py"):  # these contain such phrases
            found += phrase_findings(path, text)
        if path.endswith(".md"):
            found += line_findings(path, text)
        if path in every:
            found += headline_findings(path, every[path])
            found += test_name_findings(path, every[path])
            if is_product(path):
                found += docstring_findings(path, public_items(every[path], classes))
    return sorted(found)


def subject_findings() -> list[Finding]:
    """Return the commits since SUBJECTS_SINCE whose subjects are longer than LONGEST_SUBJECT.

    There are none where the history is missing: in a copied folder, or in a shallow clone.
    """
    git = ["git", "-C", ROOT]
    known = subprocess.run([*git, "merge-base", "--is-ancestor", SUBJECTS_SINCE, "HEAD"], capture_output=True)
    if known.returncode:
        return []
    log = subprocess.run(
        [*git, "log", "--no-merges", "--format=%h %s", f"{SUBJECTS_SINCE}..HEAD"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return long_subjects(log.stdout.splitlines())


def long_subjects(lines: Sequence[str]) -> list[Finding]:
    """Return the findings for `lines` of commits, each an abbreviated hash and a subject."""
    found = []
    for line in lines:
        commit, _, subject = line.partition(" ")
        if len(subject) > LONGEST_SUBJECT:
            found.append(
                (f"commit {commit}", 1, f"{len(subject)} characters in the subject: at most {LONGEST_SUBJECT}")
            )
    return found


def main() -> int:
    """Print the findings below the paths in the command line. Returns 1 if there are any."""
    try:
        found = findings(sys.argv[1:])
    except FileNotFoundError as error:
        sys.exit(str(error))
    if not sys.argv[1:]:
        found += subject_findings()
    for path, line, message in found:
        print(f"{path}:{line}: {message}")
    print(f"{len(found)} findings", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
