"""Fuzz tests: thousands of unusual inputs, and those that failed once; no input may crash, hang or exhaust memory.

    python3 -m venv /tmp/fuzz && /tmp/fuzz/bin/pip install hypothesis
    PIGEONPOST_TEST_FUZZ=1000 /tmp/fuzz/bin/python -m unittest discover -t . -s tests/fuzz

PIGEONPOST_TEST_FUZZ is the number of inputs that each test generates (50; 1,000 with PIGEONPOST_TEST_LONG=1). Without
hypothesis only the inputs in corpus/ are tried: one folder per target, one file per input, with a descriptive name.
hypothesis stores failing inputs in the folder for temporary files and tries them first the next time. If
PIGEONPOST_TEST_FIRST_SEED is set, as in .ci/run, every run has the same inputs.
"""

import contextlib
import logging
import os
import signal
import tempfile
import tracemalloc
import unittest
from pathlib import Path

from tests.support import rounds

try:
    import hypothesis
    from hypothesis import strategies as st
except ImportError:
    hypothesis = st = None
else:
    from hypothesis.configuration import set_hypothesis_home_dir
    from hypothesis.database import DirectoryBasedExampleDatabase

    _REPEATS = "PIGEONPOST_TEST_FIRST_SEED" in os.environ
    _home = os.path.join(tempfile.gettempdir(), f"pigeonpost-fuzz-{os.getuid()}")
    set_hypothesis_home_dir(_home)  # no files in the source tree
    _PROFILE = hypothesis.settings(
        max_examples=rounds("PIGEONPOST_TEST_FUZZ", 50, 1000), deadline=None, print_blob=True,
        derandomize=_REPEATS,
        database=None if _REPEATS else DirectoryBasedExampleDatabase(os.path.join(_home, "examples")),
        # Mutated lists of valid lines are slow to generate on a slow machine, which is not an error.
        suppress_health_check=[hypothesis.HealthCheck.too_slow],
    )  # fmt: skip

CORPUS = Path(__file__).parent / "corpus"


def fuzzed(inputs):
    """Return a test method that is called with inputs of the strategy `inputs()`; it is skipped without hypothesis."""
    if hypothesis is None:
        return unittest.skip("hypothesis is not installed")
    return lambda test: _PROFILE(hypothesis.given(inputs())(test))


class Target:
    """Base of tests of code that reads untrusted bytes.

    A subclass names its folder of the corpus, and checks one input in `check`.
    """

    corpus = ""
    CPU_S = 1.0  # per input, which takes milliseconds; processor time, since other programs may run too
    MEMORY_BYTES = 4 << 20

    def setUp(self):
        logging.disable(logging.CRITICAL)
        self.addCleanup(logging.disable, logging.NOTSET)
        super().setUp()

    def test_the_corpus(self):
        kept = sorted((CORPUS / self.corpus).iterdir())
        self.assertTrue(kept, "the corpus is empty")
        for path in kept:
            with self.subTest(path.name):
                self.check(path.read_bytes())

    @contextlib.contextmanager
    def bounded(self):
        """Return a context that fails if the block takes more than CPU_S of processor time or MEMORY_BYTES."""

        def hangs(*_):
            raise AssertionError(f"not done within {self.CPU_S} s of the processor's time")

        old = signal.signal(signal.SIGVTALRM, hangs)
        signal.setitimer(signal.ITIMER_VIRTUAL, self.CPU_S)
        tracemalloc.start()
        try:
            yield
            _, peak = tracemalloc.get_traced_memory()
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
            tracemalloc.stop()
            signal.signal(signal.SIGVTALRM, old)
        self.assertLess(peak, self.MEMORY_BYTES)


def mutated(right, pieces, most):
    """Return a strategy for bytes made by the strategy `right` with up to four changes, or any bytes.

    At most `most`.
    """

    @st.composite
    def changed(draw):
        data = bytearray(draw(right))
        for _ in range(draw(st.integers(0, 4))):
            at = draw(st.integers(0, len(data)))
            end = at + draw(st.integers(0, 20))
            own = bytes(data[at : at + 30])  # repeated, or moved
            piece = draw(st.sampled_from((*pieces, own)) | st.binary(max_size=4))
            data[at:end] = piece * draw(st.sampled_from((1, 1, 1, 0, 2, 12, 5000)))
            del data[most:]
        return bytes(data)

    return changed() | changed() | changed() | st.binary(max_size=80)
