"""Running the tests: shared by two processes, in random order, with a record of skipped tests."""

import io
import os
import unittest

from tests.parallel import Reporter, add_report, by_module, run_queue
from tests.run import Result, never_run, shuffled
from tests.support import temp_folder


class Examples:
    """Tests with every outcome, which discovery does not find."""

    class Fixture(unittest.TestCase):
        @classmethod
        def setUpClass(cls):
            raise KeyError("fixture")

        def test_is_never_run(self):
            pass

    class Outcomes(unittest.TestCase):
        def test_ends_with_an_error(self):
            raise KeyError("key")

        def test_fails_an_assertion(self):
            self.assertEqual(1, 2)

        def test_passes_all_assertions(self):
            pass

        @unittest.skip("a reason")
        def test_skips_with_a_reason(self):
            pass

        def test_parts_fail_alone(self):
            for number in range(3):
                with self.subTest(number=number):
                    self.assertEqual(number, 1)


def examples():
    loader = unittest.TestLoader()
    return [test for case in (Examples.Fixture, Examples.Outcomes) for test in loader.loadTestsFromTestCase(case)]


def told(result):
    return {
        kind: sorted((test.id(), text.splitlines()[-1]) for test, text in getattr(result, kind))
        for kind in ("failures", "errors", "skipped")
    }  # fmt: skip


class Shared(unittest.TestCase):
    def test_second_process_reports_all_that_its_tests_did(self):
        alone, report, whole = unittest.TestResult(), io.StringIO(), unittest.TestResult()
        unittest.TestSuite(examples()).run(alone)
        second = Reporter(report)
        unittest.TestSuite(examples()).run(second)
        second.write()
        report.seek(0)
        add_report(report, whole)
        self.assertEqual((whole.testsRun, told(whole)), (alone.testsRun, told(alone)))
        self.assertEqual([len(kind) for kind in told(whole).values()], [3, 2, 1])

    def test_each_module_is_run_by_the_process_that_takes_its_index(self):
        queue, far = os.pipe()
        self.addCleanup(os.close, queue)
        os.write(far, b"\1\0")
        os.close(far)
        fixture, *others = examples()
        result = unittest.TestResult()
        run_queue(queue, [[others[2]], [others[0], fixture]], result)
        self.assertEqual((result.testsRun, len(result.errors)), (2, 2))

    def test_modules_are_in_the_same_order_in_both_processes(self):
        (mine,) = by_module([unittest.TestSuite(examples())])
        self.assertEqual([test.id() for test in mine], [test.id() for test in examples()])


class Ordered(unittest.TestCase):
    def test_a_seed_gives_the_same_order_again_and_keeps_classes_together(self):
        orders = [[test.id() for test in shuffled(examples(), seed)] for seed in (1, 1, 2, 3, 4)]
        self.assertEqual(orders[0], orders[1])
        self.assertGreater(len(set(map(tuple, orders))), 1)
        for order in orders:
            self.assertIn([name for name in order if "Fixture" in name], (order[:1], order[-1:]))


class Recorded(unittest.TestCase):
    def record(self, *rows):
        path = os.path.join(temp_folder(self), "record")
        with open(path, "w", encoding="utf-8") as file:
            file.writelines(f"{outcome}\t{name}\n" for outcome, name in rows)
        return path

    def test_skipped_and_executed_tests_are_recorded(self):
        result = Result(unittest.runner._WritelnDecorator(io.StringIO()), True, 0)
        unittest.TestSuite(examples()[1:]).run(result)
        outcomes = {name.rpartition(".")[2]: outcome for outcome, name in result.outcomes}
        self.assertEqual(outcomes.pop("test_skips_with_a_reason"), "skipped")
        self.assertEqual(
            outcomes,
            dict.fromkeys(
                (
                    "test_ends_with_an_error",
                    "test_fails_an_assertion",
                    "test_passes_all_assertions",
                    "test_parts_fail_alone",
                ),
                "ran",
            ),
        )

    def test_tests_that_every_step_skipped_are_named(self):
        for skipped in ("a.B.test_c", "setUpClass (a.B)", "setUpModule (a)", "unittest.loader.ModuleSkipped.a"):
            with self.subTest(skipped):
                first, second = (
                    self.record(("skipped", skipped), ("ran", "a2.B.test_c")),
                    self.record(("ran", "a.B.test_c")),
                )
                self.assertEqual(never_run([first]), [skipped])
                self.assertEqual(never_run([first, second]), [])


if __name__ == "__main__":
    unittest.main()
