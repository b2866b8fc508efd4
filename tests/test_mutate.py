"""Tests of the mutation script's own part: its mutants are faults."""

import ast
import unittest

from tests.mutate import mutated, places

SOURCE = """def f(a, b):
    if a < 0 and not b:
        raise ValueError
    total = a + 1
    log.info(total)
    return total in (1, 2)
"""


class Mutants(unittest.TestCase):
    def test_each_is_other_code_that_compiles(self):
        found = {mutated(SOURCE, number)[0] for number in range(len(list(places(ast.parse(SOURCE)))))}
        self.assertNotIn(ast.unparse(ast.parse(SOURCE)), found)
        for fault in ("a <= 0", "a < 0 or", "a - 1", "a + 2", "not in", "        pass", "if not (a < 0"):
            self.assertTrue(any(fault in text for text in found), fault)
        for text in found:
            compile(text, "mutant", "exec")

    def test_texts_of_messages_are_not_mutated(self):
        lines = {line for line, _ in places(ast.parse(SOURCE))}
        self.assertNotIn(5, lines)
        silent = """def f(a: "int" | None) -> 3:
    "text"
    if TYPE_CHECKING:
        import b
    log.info(a + 1)
    raise ValueError(a + 1)
"""
        self.assertEqual([line for line, _ in places(ast.parse(silent))], [6])  # that it is raised


if __name__ == "__main__":
    unittest.main()
