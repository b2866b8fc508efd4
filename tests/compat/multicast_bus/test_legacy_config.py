"""Tests of the old JSON configuration: reading, error messages, and conversion to settings of our programs."""

import argparse
import contextlib
import io
import json
import os
import tomllib
import unittest
from unittest import mock

import control
from node import make_sources
from pigeonpost.compat.multicast_bus import legacy_config
from pigeonpost.compat.multicast_bus.convert_config import channel_names, formulas, node_toml, server_toml
from pigeonpost.compat.multicast_bus.legacy_config import Unreachable, load, node_name, parse, slug
from pigeonpost.core import config
from pigeonpost.core.errors import SettingsError
from pigeonpost.sensors.formula import compile_formula
from pigeonpost.settings import NODE, SERVER
from tests.http_servers import Server, raw_server, says
from tests.support import temp_folder
from tests.web.support import WebHouse

GROUPS = {"Control-Channel": {"Address": "226.0.0.221", "Port": 7001},
          "Data-Channel": {"Address": "226.0.0.222", "Port": 7002}}  # fmt: skip


def sensor(codifier="C4", **more):
    return {"Codifier": codifier, "ShortName": f"Name {codifier}", "Symbol": "C", "Type": "TempLinux",
            "Sensor": {"Pipe": "/sys/class/thermal/thermal_zone0/temp"}, **more}  # fmt: skip


def proxy(codifier, parent, **more):
    return sensor(codifier, Type="Proxy", Sensor={"Codifier": parent}, **more)


def text(*sensors, **more):
    return json.dumps({"Multicast": GROUPS, "Logging": {"version": 1}, "Sensors": list(sensors), **more}).encode()


def read(*sensors, **more):
    return parse(text(*sensors, **more), "old.json")


class ConfigurationReading(unittest.TestCase):
    def test_all_keys_of_a_sensor_are_read(self):
        found = read({
            "Codifier": "F1", "ShortName": "Air Temp", "Name": "Temperature of the air", "Symbol": "C",
            "Type": "ADAfruitReader", "DataType": "float", "Active": False, "Control": "enabled",
            "KeepAliveInterval": 30, "SensorInterval": 5, "TimeoutWarning": 20, "Other": 1,
            "Sensor": {"Pin": "21", "Proxy": [{"Codifier": "F2"}], "__comment": "x"},
        }, proxy("F2", "F1", DataType="integer"))  # fmt: skip
        self.assertEqual((found.control, found.data), (("226.0.0.221", 7001), ("226.0.0.222", 7002)))
        one = found.sensors["F1"]
        self.assertEqual(
            (one.short_name, one.name, one.symbol, one.kind, one.data_type, one.active, one.control),
            ("Air Temp", "Temperature of the air", "C", "ADAfruitReader", "float", False, True),
        )
        self.assertEqual((one.alive_s, one.every_s, one.timeout_s, one.about["Pin"]), (30.0, 5.0, 20.0, "21"))
        self.assertEqual(one.proxies, {"F2": {"Codifier": "F2"}})
        self.assertEqual((found.sensors["F2"].parent, found.sensors["F2"].data_type), ("F1", "integer"))

    def test_missing_keys_have_the_old_defaults(self):
        one = read({"Codifier": "R1"}).sensors["R1"]
        self.assertEqual(
            (one.data_type, one.active, one.control, one.alive_s, one.kind), ("float", True, False, 60.0, "")
        )
        self.assertIsNone(parse(b'{"Sensors": []}', "x").control)

    def test_the_oldest_files_have_the_kind_within_Sensor(self):
        one = read(sensor(Type="bool", Sensor={"Type": "TempLinux", "Pipe": "/x"})).sensors["C4"]
        self.assertEqual((one.kind, one.data_type), ("TempLinux", "bool"))

    def test_errors_name_the_sensor_and_the_key(self):
        for data, said in (
            (b"{", "old.json: not JSON: "), (b"[" * 100_000, "old.json: not JSON: "),
            (b'{"Sensors": {}}', 'a list "Sensors"'),
            (b'{"Sensors": [{"Codifier": "C4", "Name": "\\ud800"}]}', "not JSON"),
            (text(5), "Sensors[0] must be an object with a Codifier"),
            (text(sensor(), sensor("C44")), "Sensors[1]: Codifier must be two visible ASCII characters, such as C4"),
            (text({}), "Sensors[0]: Codifier must be two visible ASCII characters, such as C4, not None"),
            (text(sensor(), sensor("C5"), sensor()), "Sensors[2]: the Codifier C4 is also in Sensors[0]"),
            (text(sensor(KeepAliveInterval="x")), "(C4): KeepAliveInterval must be a number of seconds above 0, not"),
            (text(sensor(SensorInterval=0)), "Sensors[0] (C4): SensorInterval must be a number of seconds"),
            (text(sensor(TimeoutWarning=True)), "Sensors[0] (C4): TimeoutWarning must be a number of seconds"),
            (text(sensor(TimeoutWarning=float("nan"))), "(C4): TimeoutWarning must be a number of seconds"),
            (text(sensor(Active="yes")), "Sensors[0] (C4): Active must be true or false, not 'yes'"),
            (text(sensor(DataType="double")), "(C4): DataType must be one of float, integer, bool, not 'double'"),
            (text(sensor(Control=1)), 'Sensors[0] (C4): Control must be a string, such as "enabled", not 1'),
            (text(sensor(ShortName=5)), "Sensors[0] (C4): ShortName must be a string, not 5"),
            (text(sensor(Sensor=[])), "Sensors[0] (C4): Sensor must be an object"),
            (text(sensor(Sensor={"Proxy": {}})), "Sensors[0] (C4): Sensor.Proxy must be a list"),
            (text(sensor(Sensor={"Proxy": [{}]})), "(C4): Sensor.Proxy[0].Codifier must be two visible ASCII"),
            (text(sensor(Sensor={"Proxy": [{"Codifier": "ZZ"}]})), "(C4): Sensor.Proxy: there is no sensor with"),
            (text(proxy("C5", "ZZ")), "Sensors[0] (C5): Sensor.Codifier: there is no sensor with the Codifier ZZ"),
            (text(Multicast=[]), "Multicast must be an object"),
            (text(Multicast={"Control-Channel": 5}), "Multicast: Control-Channel must be an object with Address"),
            (text(Multicast={"Control-Channel": {"Address": "192.0.2.1", "Port": 1}}), "Address must be a multicast"),
            (text(Multicast={"Data-Channel": {"Address": "226.0.0.1", "Port": 0}}), "Data-Channel: Port must be a"),
        ):  # fmt: skip
            with self.subTest(said), self.assertRaises(SettingsError) as caught:
                parse(data, "old.json")
            self.assertTrue(str(caught.exception).startswith("old.json: "), caught.exception)
            self.assertIn(said, str(caught.exception))
            self.assertLess(len(str(caught.exception)), 300)

    def test_texts_become_valid_channel_and_node_names(self):
        self.assertEqual([slug(name) for name in ("pimon Temp", "MAD+Aqua W", "2nd", "°", "x" * 40)],
                         ["pimon_temp", "mad_aqua_w", "s_2nd", "", "x" * 32])  # fmt: skip
        self.assertEqual(
            [node_name(name) for name in ("pimon Temp", "../../x", "-a-", "°")], ["pimon-Temp", "x", "a", ""]
        )


class ConfigurationSources(unittest.TestCase):
    def setUp(self):
        self.path = os.path.join(temp_folder(self), "config.json")
        with open(self.path, "wb") as file:
            file.write(text(sensor()))

    def test_file_is_read_by_path_or_file_url(self):
        for source in (self.path, f"file:{self.path}", f"file://{self.path}"):
            self.assertIn("C4", load(source).sensors)
        with contextlib.chdir(os.path.dirname(self.path)):
            self.assertIn("C4", load("file:config.json").sensors)  # as in the old programs

    def test_configuration_is_downloaded_from_a_url(self):
        web = WebHouse(self)
        host, port = web.address
        with self.assertRaisesRegex(Unreachable, f"^http://{host}:{port}/config.json: Not Found"):
            load(f"http://{host}:{port}/config.json")
        server = Server(self)
        server.answers["/old"] = (302, {"Location": "/config.json"}, b"")
        server.answers["/config.json"] = (200, {}, text(sensor()))
        with mock.patch.dict(os.environ, {"http_proxy": "http://127.0.0.1:1"}):
            self.assertIn("C4", load(f"{server.url}/old").sensors)

    def test_unreachable_url_raises_unreachable(self):
        cut_off = raw_server(self, says(b"200 OK\r\nContent-Length: 100", text(sensor())[:50]))
        for url, words in (
            (raw_server(self, lambda sock: sock.sendall(b"SSH-2.0-OpenSSH\r\n")), "SSH-2.0"),
            (cut_off, "the answer was cut off"),
            ("http://no.such.host.invalid/c.json", ""),
        ):
            with self.subTest(url), self.assertRaisesRegex(Unreachable, f"^{url}: .*{words}"):
                load(url)

    def test_missing_or_too_long_file_raises_settings_error(self):
        with self.assertRaisesRegex(SettingsError, "^/nowhere/x: No such file"):
            load("/nowhere/x")
        with open(self.path, "wb") as file:
            file.truncate(legacy_config.FILE_BYTES + 1)
        with self.assertRaisesRegex(SettingsError, "longer than 4 MiB"):
            load(self.path)
        server = Server(self)
        server.answers["/c"] = (200, {}, b" " * (legacy_config.FILE_BYTES + 1))
        with self.assertRaisesRegex(SettingsError, "^http.*/c: longer than 4 MiB"):
            load(f"{server.url}/c")

    def test_JPH_CONFIG_is_the_default_source(self):
        with mock.patch.dict(os.environ, {"JPH_CONFIG": "file:there"}):
            self.assertEqual(legacy_config.source_of(""), "file:there")
            self.assertEqual(legacy_config.source_of("here"), "here")


class NodeConversion(unittest.TestCase):
    """The programs accept the output of `control.py old-config`."""

    def convert(self, *sensors):
        self.found = node_toml(read(*sensors), [entry["Codifier"] for entry in sensors])
        path = os.path.join(temp_folder(self), "node.toml")
        with open(path, "w", encoding="utf-8") as file:
            file.write(self.found)
        settings = config.load(NODE, argparse.Namespace(config=path), "", ("sensor",), environment={})
        make_sources(settings)  # each kind accepts its table
        return tomllib.loads(self.found)

    def test_pipe_becomes_a_command_sensor(self):
        content = self.convert(sensor(SensorInterval=5), sensor("C5", Type="Pipe", Sensor={"Pipe": "/run/x | head -1"}))
        self.assertEqual(content["sensor"][0], {
            "kind": "command", "file": "/sys/class/thermal/thermal_zone0/temp",
            "channels": {"name_c4": {"gain": 0.001, "unit": "°C"}},
        })  # fmt: skip
        self.assertEqual(
            (content["sensor"][1]["command"], content["sensor"][1]["shell"]), ("cat /run/x | head -1", True)
        )
        self.assertEqual(content["bus"]["codifiers"], ["name_c4=C4", "name_c5=C5"])
        self.assertEqual(content["node"]["every"], 5)

    def test_json_over_http_with_proxies(self):
        about = {"URL": "http://192.168.0.8/X", "Field": "Flow", "Proxy": [{"Codifier": "X2", "Field": "Litres.s"}]}
        content = self.convert(sensor("X1", Type="failsafeReader", Sensor=about), proxy("X2", "X1", Symbol="lpm"))
        self.assertEqual(content["sensor"][0]["channels"], {
            "name_x1": {"path": "Flow", "unit": "°C"}, "name_x2": {"path": '"Litres.s"', "unit": "lpm"},
        })  # fmt: skip

    def test_adc_pi_becomes_mcp3424_and_formula(self):
        about = {"Pin": "2", "Proxy": [{"Codifier": "A2", "Pin": "1"}]}
        found = node_toml(read(sensor("A1", Type="ADCpiReader", Sensor=about), proxy("A2", "A1")), ["A1", "A2"])
        chip, formula = tomllib.loads(found)["sensor"]
        self.assertEqual((chip["kind"], chip["channels"]["name_a1_volts"]["input"]), ("mcp3424", 2))
        self.assertEqual(chip["channels"]["name_a2_volts"]["input"], 1)
        evaluate = compile_formula(formula["channels"]["name_a1"]["formula"]).evaluate
        ohm = (5 - 3.2) / 3.2 * 16800 / 1000  # the calculation of the old program
        self.assertAlmostEqual(evaluate({"name_a1_volts": 3.2}), 0.0755 * ohm**2 - 4.2327 * ohm + 60.589)

    def test_am2302_becomes_a_kernel_sensor(self):
        about = {"Pin": "21", "Proxy": [{"Codifier": "F2"}]}
        content = self.convert(sensor("F1", Type="ADAfruitReader", Sensor=about), proxy("F2", "F1", Symbol="%"))
        self.assertEqual(content["sensor"][0]["channels"], {
            "name_f1": {"from": "iio/dht11@15/temp", "unit": "°C"},
            "name_f2": {"from": "iio/dht11@15/humidityrelative", "unit": "%"},
        })  # fmt: skip
        self.assertIn("# add to config.txt: dtoverlay=dht11,gpiopin=21 (", self.found)

    def test_dwarfpool_becomes_a_json_preset(self):
        about = {"URL": "http://pool.example/api", "Server": "AQUA", "Proxy": [{"Codifier": "M2"}]}
        content = self.convert(sensor("M1", Type="DwarfpoolReader", Sensor=about), proxy("M2", "M1"))
        self.assertEqual(content["sensor"][0]["preset"], "dwarfpool")
        self.assertEqual(content["sensor"][0]["channels"]["name_m2"]["value"], "hashrate_calculated")

    def test_control_sensor_becomes_a_control(self):
        content = self.convert(sensor("FJ", Type="controlSensor", Control="enabled", Sensor={}), sensor())
        self.assertEqual(content["bus"]["controls"], ["name_fj=FJ"])

    def test_component_without_equivalent_is_named_with_the_reason(self):
        self.convert(
            sensor("N1", Type="NestReader", Sensor={}), sensor("R1", Type="jphRedis"), sensor(),
            sensor("ZZ", Type="Odd\n[x]", Sensor={}), sensor("A1", Type="ADCpiReader", Sensor={"Pin": "9"}),
        )  # fmt: skip
        lost = [line for line in self.found.splitlines() if line.startswith("# NOT CONVERTED: ")]
        self.assertEqual([line.split()[3] for line in lost], ["N1", "R1", "ZZ", "A1"])
        self.assertIn('preset = "nest"', lost[0])
        self.assertIn("Odd?[x]: there is no corresponding kind of sensor", lost[2])
        self.assertIn("Pin must be a number from 1 to 8, not 9", lost[3])

    def test_server_toml_has_the_groups_and_the_source(self):
        content = tomllib.loads(server_toml(parse(text(sensor()), "https://example.org/c.json")))
        self.assertEqual(content, {"bus": {"enabled": True, "control": "226.0.0.221:7001", "data": "226.0.0.222:7002",
                                           "configuration": "https://example.org/c.json"}})  # fmt: skip
        self.assertLessEqual(set(content["bus"]), {setting.key for setting in SERVER if setting.table == "bus"})

    def test_equal_short_names_get_the_codifier_appended(self):
        names = channel_names(read(sensor("W7", ShortName="Total power"), sensor("W8", ShortName="Total power"),
                                   sensor("<>", ShortName="°"), sensor("W9", ShortName="")))  # fmt: skip
        self.assertEqual(len(set(names.values())), 4)
        self.assertEqual((names["W7"], names["W8"]), ("total_power_w7", "total_power_w8"))
        for name in names.values():
            self.assertRegex(name, r"^[a-z][a-z0-9_]{0,31}$")

    def test_hostile_texts_cannot_add_toml_keys(self):
        content = self.convert(sensor(ShortName='"]\n[node]\nevery = 1', Name="\r\n[[sensor]]\x7f\u2028",
                                      Symbol='"}\x07', Sensor={"Pipe": '/x"\n\x7f'}))  # fmt: skip
        self.assertEqual(len(content["sensor"]), 1)
        self.assertEqual(content["sensor"][0]["command"], 'cat /x"\n\x7f')


class Calculations(unittest.TestCase):
    SENSORS = (sensor("A1", ShortName="in"), sensor("A2", ShortName="out"), sensor("X2", ShortName="flow", Symbol="7"))

    def convert(self, program, key="Expression", path="program.py"):
        calc = sensor(
            "PA", ShortName="calc", Type="PythonNinja", Sensor={key: program if key == "Expression" else path}
        )
        folder = temp_folder(self)
        with open(os.path.join(folder, "program.py"), "w", encoding="utf-8") as file:
            file.write(program)
        source = os.path.join(folder, "config.json")
        found = parse(text(*self.SENSORS, calc, sensor("PB"), sensor("PC"), sensor("in", ShortName="in_")), source)
        names = {**channel_names(found), "A1": "inside", "A2": "outside", "X2": "flow"}
        return formulas(found.sensors["PA"], names, found)

    def test_expression_becomes_a_formula(self):
        for text, formula in (
            ("{{ A1 }} - {{A2}}", "inside - outside"), ("{{ A1|Value }} * 2", "inside * 2"),
            ("{{ A1 | redis | Value }} + 1", "inside + 1"),
            ("{{ A1 }} * {{ A1|config|SensorInterval }}", "inside * 60.0"),
            ("max({{ A1 }}, {{ A2 }}) if {{ X2 }} > 0.5 else 0", "max(inside, outside) if flow > 0.5 else 0"),
        ):  # fmt: skip
            self.assertEqual(self.convert(text), ({"PA": formula}, []), text)

    def test_program_becomes_one_formula_per_sent_value(self):
        program = """
# only when all inputs are fresh
n=jph.timeNow()
times = [{{ A1|DTimestamp }}, {{ X2|redis|DTimestamp }}]
l=min(times)
if (l!=None):
    if (n-l < 20000):
        t = {{ A1 }}
        try:
            a = (t * {{ X2 }} + {{ A2 }}) / ({{ X2 }} + 1)
        except Exception as e:
            channel.logger.warning("Unexpected result: %s", e)
            raise
        else:
            channel.sendData(data=a, Codifier="PB")
        t = t - 1
        channel.sendData(t)
"""
        found, notes = self.convert(program, "Filename")
        self.assertEqual(found, {"PB": "(inside * flow + outside) / (flow + 1)", "PA": "inside - 1"})
        self.assertEqual(notes, [])

    def test_unsupported_statement_is_named_and_the_rest_is_converted(self):
        program = """
x = {{ A1 }}
for i in range(3):
    x = x + i
channel.sendData(data=x, Codifier="PB")
channel.sendData(data={{ A2 }}, Codifier="PC")
open("/tmp/never", "w")
y = __import__("os").system("true")
channel.sendData(data=y)
channel.sendData(data="text", Codifier="in")
"""
        found, notes = self.convert(program, "Filename")
        self.assertEqual(found, {"PC": "outside"})
        self.assertEqual(notes[:3], [f"line {n} of its program is not converted" for n in (2, 4, 6)])
        self.assertTrue(any(note.startswith("PA is not converted: ") for note in notes), notes)
        self.assertTrue(any(note.startswith("in is not converted: ") for note in notes), notes)

    def test_unknown_sensor_or_field_raises_an_error(self):
        for program, said in (
            ("{{ ZZ }} + 1", "it uses the sensor ZZ, which does not exist"),
            ("{{ A1|TDuration }}", "it uses TDuration of A1"),
            ("{{ A1|config|Secret }}", "it uses the setting Secret of A1"), ("{{ A1 }} +", "is not Python"),
            ("(" * 5000 + ")" * 5000, "is not Python"),
        ):  # fmt: skip
            with self.subTest(program[:20]), self.assertRaisesRegex(Exception, said):
                self.convert(program)
        with self.assertRaisesRegex(Exception, "its program nothing.py cannot be read"):
            self.convert("", "Filename", "nothing.py")

    def test_nested_assignments_do_not_grow_exponentially(self):
        program = (
            "a = {{ A1 }}\n" + "a = a + a\n" * 60 + "channel.sendData(a)\nchannel.sendData({{ A2 }}, Codifier='PB')"
        )
        found, notes = self.convert(program, "Filename")
        self.assertEqual(list(found), ["PB"])
        self.assertTrue(notes)


class Command(unittest.TestCase):
    def run_it(self, *words, **environment):
        out, err = io.StringIO(), io.StringIO()
        with (
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            contextlib.chdir(temp_folder(self)),
            mock.patch.dict(os.environ, environment),
        ):
            status = control.main(["old-config", *words])
        return status, out.getvalue(), err.getvalue()

    def setUp(self):
        self.path = os.path.join(temp_folder(self), "config.json")
        with open(self.path, "wb") as file:
            file.write(text(sensor(), sensor("C5", Type="NestReader", Sensor={})))

    def test_command_prints_both_files_or_one(self):
        status, out, _ = self.run_it(self.path)
        self.assertEqual(status, 0)
        self.assertLess(out.index("# server.toml"), out.index("# node.toml"))
        for only in ("server", "node"):
            status, out, _ = self.run_it(self.path, "--only", only)
            self.assertIn("bus", tomllib.loads(out))
        self.assertEqual(self.run_it(JPH_CONFIG=self.path)[0], 0)

    def test_command_converts_only_the_given_components(self):
        _, out, _ = self.run_it(self.path, "C4", "--only", "node")
        self.assertNotIn("NOT CONVERTED", out)
        status, _, err = self.run_it(self.path, "XX")
        self.assertEqual((status, err), (2, f"control.py: {self.path}: there is no sensor with the Codifier XX\n"))

    def test_unreadable_file_is_exit_status_2(self):
        self.assertEqual(self.run_it("/nowhere/x")[0], 2)
        status, _, err = self.run_it(JPH_CONFIG="")
        text = "control.py: old-config: pass the path or URL of the configuration file, or set JPH_CONFIG\n"
        self.assertEqual((status, err), (2, text))


if __name__ == "__main__":
    unittest.main()
