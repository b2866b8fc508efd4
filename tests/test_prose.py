"""The checks of tests/prose.py find what they are for, and accept correct text. `.ci/run` applies them to all files."""

import ast
import re
import unittest

from tests import prose

EXAMPLES = (
    "it begins anew", "the time is reckoned", "whosoever connects", "two nodes, one of which fails", "by way of it",
    "what stands in the log", "a sample comes along", "the client is told", "a fault is told of", "it hears the node",
    "the page says so", "it is said there", "a stranger connects", "a fault of this program", "the house is open",
    "there is no room", "the road to the server", "the door is closed", "a guest connects", "an errand waits",
    "a parcel arrives", "he opens his page", "a page of ours", "it tries in vain", "it waits for ever", "it is at hand",
    "whatever it sends", "nothing of it remains", "one line a fault", "a row a sample", "as far as it goes",
    "how it comes to stay", "it goes wrong", "hence it fails", "it stops by itself", "likewise so for nodes",
    "so is the other", "nobody knows", "that it is.", "it may well fail", "of its own making", "it gives back the slot",
    "what it has to hand", "it is for nothing", "it does without", "what is there to do", "the samples behind",
)  # fmt: skip


def docstring_messages(source):
    """The findings about docstrings of a module with this source."""
    tree = ast.parse(source)
    classes = prose._class_table({"m.py": tree})
    return [message for _, _, message in prose.docstring_findings("m.py", prose.public_items(tree, classes))]


class Phrases(unittest.TestCase):
    def found_in(self, path, text):
        return [message.split("`")[1] for _, _, message in prose.phrase_findings(path, text)]

    def test_phrases_are_found_in_comments_docstrings_and_strings(self):
        source = 'def f():\n    """Start anew."""\n    # for ever\n    return "the client is told why"\n'
        self.assertEqual(self.found_in("m.py", source), ["anew", "for ever", "is told"])

    def test_phrases_are_found_across_line_ends_but_not_across_paragraphs(self):
        source = 'def f():\n    """Close it.\n\n    Two, one of\n    which is open.\n    """\n    # for\n    # ever\n'
        self.assertEqual([line for _, line, _ in prose.phrase_findings("m.py", source)], [4, 7])
        self.assertEqual(self.found_in("a.md", "one of\nwhich is for\n\never\n"), ["of which"])
        self.assertEqual(self.found_in("m.py", "x = 1  # as a value of it, for\ny = 2  # ever\n"), [])

    def test_comparison_signs_do_not_hide_prose(self):
        self.assertEqual(self.found_in("m.py", '"""If a < 3, whoever calls with b > 4."""\n'), ["whoever"])

    def test_each_phrase_has_its_line(self):
        source = '"""One.\n\nTwo.\nWhoever calls.\n"""\n'
        self.assertEqual([line for _, line, _ in prose.phrase_findings("m.py", source)], [4])

    def test_identifiers_and_words_that_contain_a_phrase_are_accepted(self):
        self.assertEqual(self.found_in("m.py", "heard = 1\n# renew the helper, a manewver, these\n"), [])

    def test_code_in_backticks_is_accepted(self):
        self.assertEqual(self.found_in("a.md", "The command `says` prints the text.\n"), [])

    def test_code_blocks_of_documents_are_accepted(self):
        self.assertEqual(self.found_in("a.md", "```\nnobody\n```\nnobody\n"), ["nobody"])
        self.assertEqual(self.found_in("a.md", "Text.\n\n    nobody\n\nnobody\n"), ["nobody"])

    def test_only_comments_of_settings_files_are_prose(self):
        self.assertEqual(self.found_in("a.toml", '# whoever\nname = "whoever"\n'), ["whoever"])

    def test_every_phrase_has_advice_and_finds_an_example(self):
        for phrase, advice in prose.PHRASES.items():
            with self.subTest(phrase):
                self.assertTrue(advice)
                pattern = re.compile(rf"\b{phrase}\b", re.IGNORECASE)
                self.assertTrue(any(map(pattern.search, EXAMPLES)))
        for example in EXAMPLES:
            self.assertTrue(self.found_in("m.py", f"# {example}\n"), example)


class Headlines(unittest.TestCase):
    def found_in(self, headline):
        return prose.headline_findings("m.py", ast.parse(f'def _f():\n    """{headline}"""\n'))

    def test_questions_and_references_are_found_also_in_private_functions(self):
        for headline in ("Which came late.", "Whether it is open.", "What it returns.", "As Store.put.", "Like close."):
            with self.subTest(headline):
                self.assertEqual(len(self.found_in(headline)), 1)

    def test_statements_are_accepted(self):
        for headline in ("Return True if it is open.", "Tracks late samples.", "Assign a number.", "Whole hours."):
            with self.subTest(headline):
                self.assertEqual(self.found_in(headline), [])


class Docstrings(unittest.TestCase):
    def test_missing_docstring_is_found(self):
        self.assertEqual(docstring_messages("def f() -> None: ...\n"), ["f: no docstring"])

    def test_missing_argument_result_and_error_are_found(self):
        source = 'def f(path: str) -> int:\n    """Read a file."""\n    raise BadFile("")\n'
        self.assertEqual(docstring_messages(source), [
            "f: the argument `path` is not described",
            "f: the result is not described (`Return ...`, `Yield ...`)",
            "f: the error BadFile is not described (`Raises:`)",
        ])  # fmt: skip

    def test_complete_docstring_is_accepted(self):
        source = 'def f(path: str) -> int:\n    """Return the size of `path`. Raises BadFile."""\n    raise BadFile\n'
        self.assertEqual(docstring_messages(source), [])

    def test_private_items_need_no_docstring(self):
        self.assertEqual(docstring_messages("def _f(a): ...\nclass _C:\n    def g(self): ...\n"), [])

    def test_overriding_method_inherits_the_docstring(self):
        source = (
            'class A:\n    """A."""\n\n    def f(self, n):\n        """Close n."""\n'
            'class B(A):\n    """B."""\n\n    def f(self, n): ...\n    def g(self): ...\n'
        )
        self.assertEqual(docstring_messages(source), ["B.g: no docstring"])

    def test_base_class_with_the_same_name_is_another_class(self):
        source = 'class A(m.A):\n    """A."""\n\n    def f(self): ...\n'
        self.assertEqual(docstring_messages(source), ["A.f: no docstring"])

    def test_overloads_need_no_docstring(self):
        source = 'class A:\n    """A."""\n\n    @typing.overload\n    def f(self, n: int) -> int: ...\n'
        self.assertEqual(docstring_messages(source), [])

    def test_properties_need_no_return(self):
        source = 'class A:\n    """A."""\n\n    @property\n    def size(self) -> int:\n        """Size in bytes."""\n'
        self.assertEqual(docstring_messages(source), [])

    def test_errors_caught_in_the_same_function_need_no_description(self):
        source = (
            'def f() -> None:\n    """Start."""\n    try:\n        raise BadFile\n    except BadFile:\n        pass\n'
        )
        self.assertEqual(docstring_messages(source), [])
        self.assertEqual(docstring_messages(source.replace("BadFile", "m.BadFile")), [])

    def test_errors_of_inner_functions_are_not_those_of_the_outer_one(self):
        source = 'def f() -> None:\n    """Start."""\n    def g():\n        raise BadFile\n'
        self.assertEqual(docstring_messages(source), [])


class TestNames(unittest.TestCase):
    def test_names_that_do_not_read_alone_are_found(self):
        for name, is_vague in (
            ("test_what_is_none", True), ("test_so_is_one_that_was_ahead", True), ("test_verify", True),
            ("test_card_begins_anew", True),
            ("test_duplicate_batch_is_acknowledged_but_not_stored", False), ("test_whole_file_is_read", False),
        ):  # fmt: skip
            with self.subTest(name):
                found = prose.test_name_findings("t.py", ast.parse(f"def {name}(self): ...\n"))
                self.assertEqual(bool(found), is_vague)


class Lines(unittest.TestCase):
    def test_long_lines_are_found_outside_tables_and_code_blocks(self):
        long = "word " * 21
        text = f"{long}\n| {long} |\n```\n{long}\n```\n\n    {long}\nshort\n"
        self.assertEqual([line for _, line, _ in prose.line_findings("a.md", text)], [1])


class Subjects(unittest.TestCase):
    def test_subjects_longer_than_72_characters_are_found(self):
        lines = ["1a2b3c4 x: " + "y" * 69, "5d6e7f8 x: " + "y" * 70]
        self.assertEqual([where for where, _, _ in prose.long_subjects(lines)], ["commit 5d6e7f8"])


class Files(unittest.TestCase):
    def test_every_kind_of_file_with_text_is_included(self):
        found = prose.files()
        for path in ("node.py", "pigeonpost/core/errors.py", "docs/README.md", "server.default.toml", "README.md",
                     "pigeonpost/views/static/script.js", "deploy/pigeonpost-node.service", ".ci/run"):  # fmt: skip
            self.assertIn(path, found)

    def test_paths_select_files_and_folders(self):
        self.assertEqual(prose.files(["node.py"]), ["node.py"])
        found = prose.files(["docs/"])
        self.assertIn("docs/README.md", found)
        self.assertTrue(all(path.startswith("docs/") for path in found))

    def test_path_without_files_is_an_error(self):
        with self.assertRaisesRegex(FileNotFoundError, "^doc is neither"):
            prose.files(["node.py", "doc"])


if __name__ == "__main__":
    unittest.main()
