import unittest
from email.utils import formatdate

from pigeonpost.core.retry_after import retry_after_s


class RetryAfter(unittest.TestCase):
    def test_retry_after_is_read_in_each_form(self):
        for text, pause_s in (
            ("0", 1), ("30", 30), (" 30 ", 30), ("9" * 30, 86_400), (formatdate(1_000_090, usegmt=True), 90),
            (formatdate(999_000, usegmt=True), 1), ("", None), ("soon", None), ("-5", None), ("1.5", None),
        ):  # fmt: skip
            self.assertEqual(retry_after_s(text, 1_000_000.0), pause_s, text)


if __name__ == "__main__":
    unittest.main()
