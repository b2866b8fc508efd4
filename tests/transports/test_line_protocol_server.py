"""The endpoints of InfluxDB: tokens, encodings of the body, nodes and sensors of the lines, partial writes, answers."""

import base64
import gzip
import json
import unittest
from unittest import mock

from pigeonpost.core.errors import DiskError
from pigeonpost.transports import line_protocol_server, line_sensors
from pigeonpost.transports.line_protocol_server import BODY_BYTES, MOST_LINES
from tests.page_support import use_memory_disk
from tests.support import WALL_MS
from tests.transports.test_readings_server import DAY_MS, InCase

_NS = 1_000_000


def setUpModule():
    use_memory_disk()


def line(value=21.5, time=WALL_MS, head="temperature,node=shed"):
    return f"{head} value={value} {time}\n"


class LineCase(InCase):
    def write(self, text, path="/write?db=home&precision=ms", token=None, body=None, **headers):
        auth = {} if token == "" else {"Authorization": f"Bearer {token or self.writer}"}
        body = text.encode() if body is None else body
        status, self.heads, answer = self.web.request("POST", path, {**auth, **headers}, body)
        return status, json.loads(answer) if answer else None

    def write_2(self, text, **more):
        return self.write(text, "/api/v2/write?org=any&bucket=any&precision=ms", **more)


class Accepted(LineCase):
    def setUp(self):
        self.open()

    def test_line_is_stored(self):
        for write, value in ((self.write, 1), (self.write_2, 2)):
            self.assertEqual(write(line(value, WALL_MS + value)), (204, None))
        self.assertEqual(self.stored(), [(WALL_MS + 1, {"temperature": 1.0}), (WALL_MS + 2, {"temperature": 2.0})])

    def test_repeated_lines_are_stored_once(self):
        text = "".join(line(n, WALL_MS + n) for n in range(100))
        for again in (False, False, True):
            if again:
                self.again()
            self.assertEqual(self.write(text)[0], 204)
        self.assertEqual(len(self.stored()), 100)

    def test_lines_of_one_node_and_time_are_one_sample(self):
        self.write(f'cpu,host=shed,cpu=cpu0 idle=9i,ok=t {WALL_MS}\nmem,host=shed used=5,text="x" {WALL_MS}\n')
        self.assertEqual(self.stored(), [(WALL_MS, {"cpu_idle_cpu0": 9, "cpu_ok_cpu0": 1, "mem_used": 5.0})])

    def test_sample_with_too_many_channels_is_split(self):
        self.write("".join(f"m,node=shed,n=t{n} a=1,b=2 {WALL_MS}\n" for n in range(200)))
        self.assertEqual(sum(len(values) for _, values in self.stored()), 400)
        self.assertEqual(self.web.faults.present(), {})

    def test_series_with_one_readable_name_get_different_sensors_permanently(self):
        text = f"a_b,node=shed c=1 {WALL_MS}\na,node=shed b_c=2 {WALL_MS}\na.b,node=shed c=3 {WALL_MS}\n"
        self.write(text)
        ((_, before),) = self.stored()
        self.assertEqual((before["a_b_c"], sorted(before.values())), (1.0, [1.0, 2.0, 3.0]))
        self.again()
        self.write("\n".join(text.replace(str(WALL_MS), str(WALL_MS + 1)).splitlines()[::-1]))
        self.assertEqual(self.stored()[1][1], before)

    def test_series_keep_their_sensors_when_the_node_is_renamed(self):
        token = self.web.tokens.make("shed")
        self.write(f"a_b c=1 {WALL_MS}\na b_c=2 {WALL_MS}\n", token=token)
        for node, new in (("shed", "garden"), ("garden", "shed")):  # back, too
            self.rename(node, new)
            self.again()
            self.write(f"a b_c=2 {WALL_MS + 1}\na_b c=1 {WALL_MS + 1}\n", token=token)
        (_, before), *after = self.stored()
        self.assertEqual(after, [(WALL_MS + 1, before)])

    def test_long_series_are_kept_as_digests(self):
        long = "x" * 100_000
        fields = ",".join(f"f{n}=1" for n in range(1000))
        heads = (f"m,node=shed,tag={long}", f"{long},node=shed", f"m,node=shed,a=1,tag={long}y")
        self.assertEqual(self.write("".join(f"{head} value=1 {WALL_MS}\n" for head in heads))[0], 204)
        self.assertEqual(self.write(f"m,node=attic,tag={long} {fields} {WALL_MS}\n")[0], 204)
        self.assertEqual(self.write(f"m,node=attic {long}=1 {WALL_MS}\n")[0], 204)
        self.again()
        self.assertEqual(self.write(f"m,node=shed,tag={long} value=2 {WALL_MS + 1}\n")[0], 204)
        (_, before), (_, after) = self.stored()
        self.assertEqual((len(before), after.keys() <= before.keys()), (3, True))
        self.assertLess(len(json.dumps(self.end._lines._sensors._file.now())), 200_000)

    def test_node_is_the_tag_node_or_host_or_device(self):
        text = "m,host=b,node=a f=1\nm,device=c,host=b f=1\nm,device=Living\\ room f=1\n"
        self.write(text)
        self.assertEqual({about["name"]: [*about["sensors"]] for about in self.web.store.nodes()},
                         {"a": ["m_f_b"], "b": ["m_f_c"], "Living-room": ["m_f"]})  # fmt: skip

    def test_token_of_a_node_names_the_node(self):
        token = self.web.tokens.make("shed")
        self.assertEqual(self.write(f"disk,device=sda1 used=1 {WALL_MS}", token=token)[0], 204)
        self.assertEqual(self.stored(), [(WALL_MS, {"disk_used_sda1": 1.0})])

    def test_each_way_to_send_a_token_is_accepted(self):
        basic = base64.b64encode(f"any:{self.writer}".encode()).decode()
        for header in (f"Token {self.writer}", f"Token any:{self.writer}", f"Basic {basic}", f"bearer {self.writer}"):
            with self.subTest(header[:6]):
                self.assertEqual(self.write(line(), token="", Authorization=header)[0], 204)
        self.assertEqual(self.write(line(), f"/write?db=x&precision=ms&u=any&p={self.writer}", token="")[0], 204)

    def test_compressed_and_chunked_bodies_are_accepted(self):
        data = gzip.compress(line().encode())
        self.assertEqual(self.write("", body=data, **{"Content-Encoding": "gzip"})[0], 204)
        head = f"POST /write?precision=ms HTTP/1.1\r\nHost: x\r\nAuthorization: Token {self.writer}\r\n"
        head += "Connection: close\r\nContent-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n"
        data = gzip.compress(line(7, WALL_MS + 1).encode())
        chunks = [data[:5], data[5:20], data[20:]]
        body = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"
        self.assertTrue(self.web.raw(head.encode() + body).startswith(b"HTTP/1.1 204"))
        self.assertEqual(len(self.stored()), 2)

    def test_precision_is_nanoseconds_by_default(self):
        self.write(line(1, WALL_MS * _NS), "/write?db=x")
        self.assertEqual(self.stored(), [(WALL_MS, {"temperature": 1.0})])

    def test_line_without_time_gets_the_time_of_arrival(self):
        self.assertEqual(self.write("m,node=shed f=1\nn,node=shed f=2")[0], 204)
        self.assertEqual([values for _, values in self.stored()], [{"m_f": 1.0, "n_f": 2.0}])

    def test_line_with_strings_only_is_accepted(self):
        self.assertEqual(self.write('m,node=shed f="on"')[0], 204)
        self.assertEqual(self.stored(), [])

    def test_first_requests_of_clients_are_answered(self):
        get = self.web.request
        self.assertEqual(get("GET", "/ping", {})[0], 204)
        self.assertEqual(get("HEAD", "/ping", {})[1]["x-influxdb-version"], "1.8-pigeonpost")
        self.assertEqual(json.loads(get("GET", "/ping?verbose=true", {})[2]), {"version": "1.8-pigeonpost"})
        self.assertEqual(json.loads(get("GET", "/health", {})[2])["status"], "pass")
        self.assertEqual(get("HEAD", "/health", {})[0], 200)
        auth = {"Authorization": f"Token {self.writer}", "Content-Type": "application/x-www-form-urlencoded"}
        for path, body in (("/query", b"q=CREATE+DATABASE+%22home%22"), ("/query?q=create+database+home", b"")):
            status, _, answer = get("POST", path, auth, body)
            self.assertEqual((status, json.loads(answer)), (200, {"results": [{"statement_id": 0}]}))
        self.assertEqual(get("POST", "/query", auth, b"q=SHOW+DATABASES")[0], 400)
        self.assertEqual(get("POST", "/query", {}, b"q=CREATE+DATABASE+x")[0], 401)

    def test_integration_is_reported(self):
        self.write(line() + line(1, WALL_MS + 1))
        (status,) = self.end.statuses()
        self.assertEqual((status.kind, status.direction, status.done, status.fault), ("influxdb", "in", 2, ""))


class Refused(LineCase):
    def setUp(self):
        self.open()

    def test_valid_lines_are_stored_although_others_are_refused(self):
        text = f"{line()}oops\n{line(1, WALL_MS + 1)}m,node=shed f=NaN 1\n"
        self.assertEqual(self.write(text)[0], 400)
        self.assertEqual(len(self.stored()), 2)
        status, answer = self.write_2(text)
        self.assertEqual((status, answer["code"]), (400, "invalid"))
        for words in ("partial write", "line 2", "dropped=2"):
            self.assertIn(words, answer["message"])
        (state,) = self.end.statuses()
        self.assertEqual((state.done, state.refused), (4, 4))
        self.assertIn("line 2", state.fault)

    def test_request_without_a_valid_line_is_400(self):
        status, answer = self.write("oops")
        self.assertEqual((status, list(answer)), (400, ["error"]))
        self.assertIn("unable to parse: line 1", answer["error"])

    def test_lines_that_may_not_be_written_are_described(self):
        self.web.tokens.make("attic")
        late_ms = self.web.app.clock.wall_ms() + 2 * DAY_MS
        for text, words in (
            (line(head="m,node=attic"), "token of its own"), (line(head="m"), "node, host or device"),
            (line(head="m,node=°"), "letter or digit"), (line(time=late_ms), "future"), (line(time=-1), "1970"),
            (line(head="m,node=a,x=1,x=2"), "twice"),
        ):  # fmt: skip
            status, answer = self.write(text)
            self.assertEqual(status, 400)
            self.assertIn(words, answer["error"])
        status, answer = self.write(line(), token=self.web.tokens.make("shed2"))
        self.assertIn("belongs to node shed2", answer["error"])

    def test_lines_over_the_limit_of_sensors_are_refused(self):
        self.write("".join(f"m,node=shed,n=t{n} a=1 {WALL_MS}\n" for n in range(1024)))
        status, answer = self.write(f"more,node=shed a=1 {WALL_MS}\nm,node=shed,n=t7 a=1 {WALL_MS + 1}")
        self.assertEqual((status, "channels_per_node" in answer["error"]), (400, True))
        self.assertEqual(self.stored()[-1], (WALL_MS + 1, {"m_a_t7": 1.0}))
        self.assertEqual(len(self.end._lines._sensors._file.now()["shed"]), 1024)

    def test_series_over_the_limit_of_names_are_refused(self):
        self.write(f"m,node=attic a=1,b=1,c=1 {WALL_MS}\n")
        with mock.patch.object(line_sensors, "MOST_NAMES", 1):  # exceeded already, by requests at the same time
            self.assertEqual(self.write(f"m,node=shed a=1 {WALL_MS}\nm,node=shed b=1 {WALL_MS}\n")[0], 400)
        self.assertEqual(self.stored(), [])
        with mock.patch.object(line_sensors, "MOST_NAMES", 4):
            status, answer = self.write(f"m,node=shed a=1,b=1 {WALL_MS}\nm,node=shed a=1 {WALL_MS}")
        self.assertEqual((status, "series on this server" in answer["error"]), (400, True))
        self.assertEqual(self.stored(), [(WALL_MS, {"m_a": 1.0})])

    def test_tokens_are_checked_before_the_body(self):
        for path, key in (("/write", "error"), ("/api/v2/write", "message")):
            for token, status in (("", 401), ("pp_" + "0" * 40, 401), (self.web.api_tokens.make(key, "viewer"), 403)):
                found, answer = self.write(line(), path, token=token)
                self.assertEqual((found, type(answer[key])), (status, str))

    def test_browser_with_a_password_is_403(self):
        basic = base64.b64encode(f"any:{self.writer}".encode()).decode()
        headers = {"Authorization": f"Basic {basic}", "Sec-Fetch-Site": "cross-site"}
        self.assertEqual(self.write(line(), token="", **headers)[0], 403)

    def test_unknown_precision_is_400(self):
        self.assertIn("precision", self.write(line(), "/write?precision=d")[1]["error"])
        self.assertIn("precision", self.write(line(), "/api/v2/write?precision=h")[1]["message"])

    def test_invalid_gzip_is_400(self):
        whole = gzip.compress(line().encode())
        for data in (b"", line().encode(), whole[:-1], whole + b"x", whole[:10] + b"\xff" * 10):
            status, answer = self.write("", body=data, **{"Content-Encoding": "gzip"})
            self.assertEqual((status, "gzip" in answer["error"]), (400, True), data)
        self.assertEqual(self.write("", body=b"x", **{"Content-Encoding": "br"})[0], 415)

    def test_gzip_bomb_is_413(self):
        bomb = gzip.compress(b"#" * (BODY_BYTES + 1))
        status, answer = self.write("", body=bomb, **{"Content-Encoding": "gzip"})
        self.assertEqual((status, str(BODY_BYTES) in answer["error"]), (413, True))
        most = gzip.compress(b"#" * BODY_BYTES)
        self.assertEqual(self.write("", body=most, **{"Content-Encoding": "gzip"})[0], 204)

    def test_too_many_lines_are_413(self):
        self.assertEqual(self.write_2("m,node=a f=1\n" * (MOST_LINES + 1))[1]["code"], "request too large")
        with mock.patch.object(line_protocol_server, "MOST_VALUES", 3):
            self.assertEqual(self.write("m,node=a a=1,b=1\n" * 3)[0], 413)

    def test_text_that_is_not_utf_8_is_400(self):
        self.assertIn("UTF-8", self.write("", body=b"m,node=\xff f=1")[1]["error"])

    def test_requests_over_the_limit_at_the_same_time_are_503(self):
        free = self.end._lines._free
        for _ in range(line_protocol_server.MOST_AT_ONCE):
            free.acquire()
        with mock.patch.object(line_protocol_server, "_BUSY_S", 0):
            status, answer = self.write(line())
        self.assertEqual((status, "try again" in answer["error"]), (503, True))
        free.release()
        for _ in range(3):  # the place is free again, also after a refusal
            self.assertEqual(self.write(line("x"))[0], 400)
            self.assertEqual(self.write(line())[0], 204)

    def test_failing_database_or_disk_is_503(self):
        with mock.patch.object(self.web.ingestor, "submit", return_value=False):
            status, answer = self.write_2(line())
            self.assertEqual((status, answer["code"], self.heads["retry-after"]), (503, "unavailable", "5"))
        with mock.patch.object(self.end._lines._sensors._file, "write", side_effect=DiskError("full")):
            self.assertEqual(self.write(line(head="other,node=shed"))[0], 503)
        self.assertEqual(self.write(line())[0], 204)
        self.assertEqual(len(self.stored()), 1)


if __name__ == "__main__":
    unittest.main()
