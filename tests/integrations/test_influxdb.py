import base64
import re
import threading
import unittest

from pigeonpost.core.errors import SettingsError
from pigeonpost.integrations.contract import NotDelivered, RefusedData
from tests.http_servers import Server, raw_server, says
from tests.integrations.forwarding import batch_of, body_of, make_target, some
from tests.support import LIMIT_S, WALL_MS

SECRET = "se-cret/pw"
LINE = re.compile(r"readings,node=[a-z]+ [a-z_]+=-?[0-9.e+-]+(,[a-z_]+=-?[0-9.e+-]+)* [0-9]{13}").fullmatch


class Influx(unittest.TestCase):
    def target(self, **given):
        return make_target(self, "influxdb", **given)

    def strict(self, path, query, authorization, status=204):
        """Return a server that has only this path, and the function that checks every part of its requests."""
        server = Server(self)
        server.answers[path] = (status, {}, b"")

        def check():
            for method, target, headers, body in server.asked:
                self.assertEqual((method, target), ("POST", f"{path}?{query}"))
                self.assertEqual(headers["Authorization"], authorization)
                self.assertEqual(headers["Content-Encoding"], "gzip")
                for line in body_of(headers, body).splitlines():
                    self.assertTrue(LINE(line), line)
            return "".join(body_of(headers, body) for _, _, headers, body in server.asked)

        return server.url, check

    def test_each_version_has_its_own_path_query_and_login(self):
        basic = "Basic " + base64.b64encode(f"me:{SECRET}".encode()).decode()
        v1 = {"database": "home & co", "user": "me", "password": SECRET}
        v2 = {"org": "the org", "bucket": "b/1", "token": SECRET}
        v3 = {"database": "home", "token": SECRET}
        v3_query = "db=home&precision=millisecond&accept_partial=false&no_sync=false"
        for given, path, query, login, status in (
            (v1, "/write", "db=home+%26+co&precision=ms", basic, 204),
            ({**v1, "version": 1}, "/write", "db=home+%26+co&precision=ms", basic, 200),
            (v2, "/api/v2/write", "org=the+org&bucket=b%2F1&precision=ms", f"Token {SECRET}", 204),
            (v3, "/api/v3/write_lp", v3_query, f"Bearer {SECRET}", 204),
            ({"database": "home", "version": 3}, "/api/v3/write_lp", v3_query, None, 204),
        ):
            with self.subTest(given):
                url, check = self.strict(path, query, login, status)
                self.target(url=url, **given).send([batch_of(some(1, 2))])
                self.assertEqual(
                    check(),
                    f"readings,node=basement temperature=21.5 {WALL_MS + 1000}\n"
                    f"readings,node=basement temperature=22.5 {WALL_MS + 2000}\n",
                )

    def test_a_path_before_that_of_influxdb_is_kept(self):
        url, check = self.strict("/influx/write", "db=home&precision=ms", None)
        self.target(url=f"{url}/influx/", database="home").send([batch_of(some(1, 1))])
        self.assertEqual(check(), f"readings,node=basement temperature=21.5 {WALL_MS + 1000}\n")

    def test_all_numbers_are_floats_and_failed_sensors_are_omitted(self):
        url, check = self.strict("/write", "db=home&precision=ms", None)
        target = self.target(url=url, database="home")
        samples = some(7, 3, light=[512, None, None], time=[-1e-300, None, 2**63 - 1])
        target.send([batch_of(samples), batch_of(some(1, 1, light=[1]), node="attic")])
        target.send([batch_of(some(1, 1, light=[None]))])  # nothing to send
        self.assertEqual(
            check(),
            f"readings,node=basement light=512,time_=-1e-300 {WALL_MS + 7000}\n"
            f"readings,node=basement time_=9223372036854775807 {WALL_MS + 9000}\n"
            f"readings,node=attic light=1 {WALL_MS + 1000}\n",
        )

    def error(self, status, body, headers=(), **given):
        server = Server(self)
        server.answers["/write"] = (status, dict(headers), body)
        target = self.target(url=server.url, **{"database": "home", **given})
        with self.assertRaises((NotDelivered, RefusedData)) as caught:
            target.send([batch_of(some())])
        self.assertNotIn(SECRET, str(caught.exception))
        return caught.exception

    def test_rejected_content_is_refused_data(self):
        conflict = (
            b'{"error":"partial write: field type conflict: input field \\"temperature\\" on measurement \\"readings\\"'
            b' is type float, already exists as type integer dropped=1"}'
        )
        error = self.error(400, conflict)
        self.assertIsInstance(error, RefusedData)
        self.assertIn("partial write: field type conflict", str(error))
        self.assertIsInstance(self.error(422, b'{"code":"unprocessable entity","message":"no"}'), RefusedData)
        self.assertIsInstance(self.error(413, b""), RefusedData)

    def test_an_answer_that_is_not_of_influxdb_refuses_nothing(self):
        error = self.error(400, b"<html>plain HTTP to HTTPS port</html>", {"Content-Type": "text/html"})
        self.assertIsInstance(error, NotDelivered)

    def test_faults_of_the_settings_name_the_remedy_and_no_secret(self):
        login = {"user": "me", "password": SECRET}
        for status, remedy in (
            (401, "set user and password to one that InfluxDB knows"),
            (403, "give this user the permission to write to the database"),
            (404, "create the database home in InfluxDB, or correct url and version"),
        ):
            error = self.error(status, b'{"error":"no: password=%s"}' % SECRET.encode(), **login)
            self.assertIsInstance(error, NotDelivered)
            self.assertIn(remedy, str(error))

    def test_a_busy_server_sets_the_pause(self):
        for status in (429, 503):
            error = self.error(status, b"", {"Retry-After": "17"})
            self.assertIsInstance(error, NotDelivered)
            self.assertEqual(error.pause_s, 17)
        self.assertIsNone(self.error(500, b'{"error":"timeout"}').pause_s)

    def test_a_redirect_is_not_followed(self):
        error = self.error(302, b"", {"Location": "http://127.0.0.1:1/"})
        self.assertIn("redirects are not followed: set the url", str(error))

    def test_a_lost_connection_is_reported_although_the_server_answers_again(self):
        """InfluxDB may have lost what it acknowledged: the forwarder must send the last minutes again."""
        url = raw_server(self, says(b"204 No Content"))
        target = self.target(url=url, database="home")
        target.send([batch_of(some())])
        with self.assertRaises(NotDelivered):
            target.send([batch_of(some())])
        target.send([batch_of(some())])

    def test_close_ends_a_waiting_send(self):
        asked = threading.Event()

        def silent(sock):
            asked.set()
            sock.recv(1)

        target = self.target(url=raw_server(self, silent), database="home")
        errors = []

        def send():
            try:
                target.send([batch_of(some())])
            except NotDelivered as error:
                errors.append(error)

        thread = threading.Thread(target=send)
        thread.start()
        self.assertTrue(asked.wait(LIMIT_S))
        target.close()
        target.close()
        thread.join(LIMIT_S)
        self.assertEqual(len(errors), 1)
        with self.assertRaisesRegex(NotDelivered, "the connection is closed"):
            target.send([batch_of(some())])

    def test_settings_of_another_version_and_missing_ones_are_errors(self):
        for given, text in (
            ({}, "InfluxDB 1 needs database"),
            ({"bucket": "b"}, "InfluxDB 2 needs org and token"),
            ({"bucket": "b", "org": "o", "token": "t", "database": "d"}, "InfluxDB 2 has no database"),
            ({"version": 1, "database": "d", "token": "t"}, "InfluxDB 1 has no token"),
            ({"database": "d", "token": "t", "user": "u"}, "InfluxDB 3 has no user"),
            ({"version": "1"}, "version takes 1, 2 or 3"),
            ({"url": "http://host/?db=home"}, "without a query"),
        ):
            with self.assertRaisesRegex(SettingsError, text):
                self.target(**given)


if __name__ == "__main__":
    unittest.main()
