import unittest

from pigeonpost.http.multipart import MOST_PARTS, PART_HEAD_BYTES, BadMultipart, FormPart, Multipart, boundary_of

FORM = (
    b"text before the first boundary\r\n--X-1\r\n"
    b'Content-Disposition: form-data; name="note"\r\n\r\n'
    b"one\r\ntwo\r\n--X\r\r\n-\r\n--X-1 \t\r\n"
    b'content-disposition: form-data; name="file"; filename="C:\\logs\\a.csv"\r\nContent-Type: text/csv\r\n\r\n'
    b"\r\n--X-1\r\n"
    b"Content-Disposition:form-data;name=file;filename*=UTF-8''%C3%BC%20b.csv;filename=b.csv\r\n\r\n"
    b"\r\n\r\n--X-1--\r\ntext after the last boundary"
)
PARTS = [
    (FormPart("note", None), b"one\r\ntwo\r\n--X\r\r\n-"),
    (FormPart("file", "C:\\logs\\a.csv"), b""),
    (FormPart("file", "ü b.csv"), b"\r\n"),
]


class RecordingSink:
    """Sink that records the parts."""

    def __init__(self):
        self.parts = []
        self.is_open = False
        self.longest = 0

    def begin(self, part):
        assert not self.is_open
        self.parts.append((part, b""))
        self.is_open = True

    def data(self, data):
        assert self.is_open and data
        part, content = self.parts[-1]
        self.parts[-1] = part, content + data

    def end(self):
        assert self.is_open
        self.is_open = False


def read(*pieces, boundary=b"X-1"):
    """Return the parts of a body that arrives in these blocks."""
    heard = RecordingSink()
    form = Multipart(boundary, heard)
    for piece in pieces:
        form.take(piece)
    form.finish()
    assert not heard.is_open
    return heard.parts


def one_part(head, content=b"x"):
    return b"--X-1\r\n" + head + b"\r\n\r\n" + content + b"\r\n--X-1--\r\n"


class DividedBodies(unittest.TestCase):
    def test_complete_body_is_parsed(self):
        self.assertEqual(read(FORM), PARTS)

    def test_body_divided_at_any_byte_is_parsed(self):
        for at in range(len(FORM) + 1):
            self.assertEqual(read(FORM[:at], FORM[at:]), PARTS, at)

    def test_body_received_byte_by_byte_is_parsed(self):
        self.assertEqual(read(*(FORM[k : k + 1] for k in range(len(FORM)))), PARTS)

    def test_memoryview_and_bytearray_are_accepted(self):
        self.assertEqual(read(memoryview(FORM)[:50], bytearray(FORM[50:])), PARTS)

    def test_buffer_is_never_longer_than_a_boundary(self):
        heard = RecordingSink()
        form = Multipart(b"X-1", heard)
        form.take(b'--X-1\r\nContent-Disposition: form-data; name="f"; filename="f"\r\n\r\n')
        for piece in (b"a" * 100_000, b"\r\n" * 50_000, b"\r\n--X-" * 20_000):
            form.take(piece)
            self.assertLess(len(form._buffer), len(b"\r\n--X-1"))
        form.take(b"\r\n--X-1--")
        form.finish()
        self.assertEqual(heard.parts[0][1], b"a" * 100_000 + b"\r\n" * 50_000 + b"\r\n--X-" * 20_000)

    def test_incomplete_body_is_an_error(self):
        end = FORM.index(b"--X-1--") + len(b"--X-1--")
        for at in range(end):
            with self.assertRaises(BadMultipart, msg=str(at)):
                read(FORM[:at])
        self.assertEqual(read(FORM[:end]), PARTS)


class PartHeads(unittest.TestCase):
    def name_of(self, disposition):
        return read(one_part(b"Content-Disposition: " + disposition))[0][0]

    def test_file_names_of_real_clients_are_parsed(self):
        for disposition, part in (
            (b'form-data; name="a"; filename="x \\"y\\".csv"', FormPart("a", 'x "y".csv')),
            (b'form-data; name="a"; filename="x%22y.csv"', FormPart("a", "x%22y.csv")),
            (b'Form-Data; Name="a"; FileName=x.csv', FormPart("a", "x.csv")),
            ('form-data; name="a"; filename="ü.csv"'.encode(), FormPart("a", "ü.csv")),
            ('form-data; name="a"; filename="ü.csv"'.encode("latin-1"), FormPart("a", "ü.csv")),
            (b'form-data; filename=""; name="a"', FormPart("a", "")),
            (b"form-data; name=a; filename*=iso-8859-1'de'%FC.csv", FormPart("a", "ü.csv")),
            (b'form-data; name="a;b"; filename="x;y=z.csv"', FormPart("a;b", "x;y=z.csv")),
        ):
            with self.subTest(disposition):
                self.assertEqual(self.name_of(disposition), part)

    def test_invalid_heads_are_refused(self):
        for head in (
            b"Content-Type: text/plain",
            b"Content-Disposition: attachment; name=a",
            b"Content-Disposition: form-data",
            b"Content-Disposition: form-data; name=a\r\nContent-Disposition: form-data; name=b",
            b'Content-Disposition: form-data; name="a\0b"',
            b'Content-Disposition: form-data; name="a"; filename="x\rb.csv"',
            b"Content-Disposition: form-data; name=a; filename*=UTF-8''%00.csv",
            b"Content-Disposition: form-data; name=a; filename*=UTF-8''%FF.csv",
            b"Content-Disposition: form-data; name=a\r\n folded",
            b"no colon\r\nContent-Disposition: form-data; name=a",
            b": no name\r\nContent-Disposition: form-data; name=a",
            b"Content-Disposition: form-data; name=a\r\nContent-Transfer-Encoding: base64",
            b"",
        ):
            with self.subTest(head), self.assertRaises(BadMultipart):
                read(one_part(head))

    def test_head_length_is_limited(self):
        start = b"Content-Disposition: form-data; name=a\r\nX: "
        fits = start + b"y" * (PART_HEAD_BYTES - len(start) - 2)
        self.assertEqual(read(one_part(fits))[0][0], FormPart("a", None))
        heard = RecordingSink()
        form = Multipart(b"X-1", heard)
        with self.assertRaises(BadMultipart):  # immediately, without waiting for more
            form.take(b"--X-1\r\n" + start + b"y" * PART_HEAD_BYTES)


class PartLimits(unittest.TestCase):
    def test_number_of_parts_is_limited(self):
        part = b"--X-1\r\nContent-Disposition: form-data; name=a\r\n\r\n\r\n"
        self.assertEqual(len(read(part * MOST_PARTS + b"--X-1--")), MOST_PARTS)
        with self.assertRaises(BadMultipart):
            read(part * (MOST_PARTS + 1) + b"--X-1--")

    def test_ten_thousand_parts_are_refused(self):
        part = b"--X-1\r\nContent-Disposition: form-data; name=a\r\n\r\n\r\n"
        with self.assertRaises(BadMultipart):
            read(part * 10_000 + b"--X-1--")

    def test_only_blanks_may_follow_a_boundary(self):
        for bad in (b"Y\r\n", b" " * 70 + b"\r\n", b"-\r\n", b"\rX", b"\n\n"):
            with self.subTest(bad), self.assertRaises(BadMultipart):
                read(b"--X-1" + bad + b"Content-Disposition: form-data; name=a\r\n\r\n\r\n--X-1--")

    def test_body_without_a_boundary_is_an_error(self):
        for body in (b"", b"a" * 100_000, b"\r\n--", b"--X-"):
            with self.assertRaises(BadMultipart):
                read(body)


class Boundaries(unittest.TestCase):
    def test_boundary_is_read_from_the_content_type(self):
        for said, boundary in (
            ("multipart/form-data; boundary=abc", b"abc"),
            ('Multipart/Form-Data; charset=utf-8; Boundary="a b:c"', b"a b:c"),
            ("multipart/form-data;boundary=----WebKitFormBoundary7MA4", b"----WebKitFormBoundary7MA4"),
            ("application/x-www-form-urlencoded", None),
            ("", None),
            ("text/plain; boundary=abc", None),
        ):  # fmt: skip
            with self.subTest(said):
                self.assertEqual(boundary_of(said), boundary)

    def test_missing_boundary_is_refused(self):
        for said in (
            "multipart/form-data",
            "multipart/form-data; boundary=",
            'multipart/form-data; boundary="' + "a" * 71 + '"',
            'multipart/form-data; boundary="a "',
            'multipart/form-data; boundary="ü"',
        ):
            with self.subTest(said), self.assertRaises(BadMultipart):
                boundary_of(said)


if __name__ == "__main__":
    unittest.main()
