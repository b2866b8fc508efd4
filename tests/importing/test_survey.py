"""Tests of the structure of files, with files of many programs."""

import unittest

from tests.importing.support import BERLIN, faults_of, inspected, rows_of

INFLUX = (
    "#group,false,false,true,true,false,false,true,true,true\n"
    "#datatype,string,long,dateTime:RFC3339,dateTime:RFC3339,dateTime:RFC3339,double,string,string,string\n"
    "#default,_result,,,,,,,,\n,result,table,_start,_stop,_time,_value,_field,_measurement,host\n"
    ",,{0},2023-01-01T00:00:00Z,2023-01-02T00:00:00Z,2023-01-01T00:00:0{0}Z,{1},{2},climate,pi 1\n\n"
)
AT = "2023-10-28T12:00:00Z"
# Program, file, and the readings in it: node and values at AT, and one minute later. All files have these times.
PROGRAMS = (
    ("Home Assistant's history", "entity_id,state,last_changed\nsensor.cellar,18.5,2023-10-28T12:00:00.000Z\n"
     "light.x,on,2023-10-28T12:00:30.000Z\nsensor.cellar,unavailable,2023-10-28T12:01:00.000Z\n",
     [("", {"cellar": 18.5}), ("", {"cellar": None})]),
    ("ThingSpeak", "created_at,entry_id,field1,field2,latitude,longitude,elevation,status\n"
     "2023-10-28 12:00:00 UTC,1,21.5,40,,,,\n2023-10-28 12:01:00 UTC,2,21.6,,,,,ok\n",
     [("", {"field1": 21.5, "field2": 40}), ("", {"field1": 21.6})]),
    ("Davis", "time;Barometer (hPa);Temp (°C);Wind\n28/10/2023   12:00;1.015,0;28,9;NNE\n28/10/2023   "
    "12:01;999,5;28,7;---\n",
     [("", {"barometer": 1015.0, "temp": 28.9}), ("", {"barometer": 999.5, "temp": 28.7})]),
    ("WeatherLink", "\t\tTemp\tHi\nDate\tTime\tOut\tOut\n28/10/23\t12:00p\t21,5\t22,0\n28/10/23\t12:01p\t---\t22,5\n",
     [("", {"temp_out": 21.5, "hi_out": 22.0}), ("", {"hi_out": 22.5})]),
    ("Govee", "Timestamp for sample frequency every 1 min min,Temperature_Celsius,Relative_Humidity\n"
     "2023-10-28 12:00:00,21.5,40\n2023-10-28 12:01:00,21.6,41\n",
     [("", {"temperature_celsius": 21.5, "relative_humidity": 40}),
      ("", {"temperature_celsius": 21.6, "relative_humidity": 41})]),
    ("HOBO", '"Plot Title: shed"\n"#","Date Time, GMT+00:00","Temp, °F (LGR S/N: 1)","Stopped (LGR S/N: 1)"\n'
     "1,10/28/23 12:00:00 PM,50,\n2,10/28/23 12:01:00 PM,51,Logged\n", [("", {"temp": 50}), ("", {"temp": 51})]),
    ("Campbell", '"TOA5","CR1000"\n"TIMESTAMP","RECORD","Batt_V"\n"TS","RN","Volts"\n"","","Avg"\n'
     '"2023-10-28 12:00:00",1,12.5\n"2023-10-28 12:01:00",2,"NAN"\n"2023-10-28 12:01:00",3,12\n',
     [("", {"batt_v": 12.5}), ("", {"batt_v": 12})]),
    ("rrdtool fetch", "                     temp         hum\n\n1698494400: 2.15e+01 -nan\n1698494460: 2.16e+01 "
    "4e+01\n",
     [("", {"temp": 21.5}), ("", {"temp": 21.6, "hum": 40.0})]),
    ("InfluxDB SELECT", "name,time,temperature\nclimate,1698494400000000000,1.5\nclimate,1698494460000000000,2\n",
     [("", {"temperature": 1.5}), ("", {"temperature": 2})]),
    ("Grafana", '"Time","cellar","attic"\n2023-10-28 12:00:00,21.5 °C,20\n2023-10-28 12:01:00,21.6 °C,\n',
     [("", {"cellar": 21.5, "attic": 20}), ("", {"cellar": 21.6})]),
    ("Grafana's series", "Series;Time;Value\ncellar;2023-10-28T14:00:00+02:00;21.5\nattic;2023-10-28T12:01:00Z;null\n"
     "attic;2023-10-28T12:01:00Z;1\n", [("", {"cellar": 21.5}), ("", {"attic": None}), ("", {"attic": 1})]),
    ("Prometheus", "__name__,instance,job,timestamp,value\ntemp,pi:9100,x,1698494400,21.5\n"
    "hum,pi:9100,x,1698494460,40\n",
     [("pi_9100", {"hum": 40}), ("pi_9100", {"temp": 21.5})]),
    ("pandas", ",temp\n2023-10-28 12:00:00,21.5\n2023-10-28 12:01:00,22\n", [("", {"temp": 21.5}), ("", {"temp": 22})]),
    ("pandas' numbers of rows", ",temp,when\n0,21.5,2023-10-28 12:00:00\n1,22,2023-10-28 12:01:00\n",
     [("", {"temp": 21.5}), ("", {"temp": 22})]),
    ("sqlite3's list", "id|taken|t\n1|2023-10-28 12:00:00|1\n2|2023-10-28 12:01:00|2\n", [("", {"t": 1}), ("",
     {"t": 2})]),
    ("Telegraf", "measurement,host,time,usage\ncpu,pi,1698494400,1.5\ncpu,pi,1698494460,2\n",
     [("pi", {"usage": 1.5}), ("pi", {"usage": 2})]),
    ("Elitech", "Device,RC-5\nFirmware,1.2\n\nNo.,Time,Temperature°C\n1,2023-10-28 12:00:00,1.5\n2,2023-10-28 "
    "12:01:00,2\n",
     [("", {"temperature": 1.5}), ("", {"temperature": 2})]),
    ("year, month, day", "year,month,day,hour,minute,temp\n2023,10,28,12,0,1\n2023,10,28,12,1,2\n",
     [("", {"temp": 1}), ("", {"temp": 2})]),
    ("AM in a column", "Date,Time,AM/PM,t\n2023-10-28,12:00,PM,1\n2023-10-28,12:01,PM,2\n", [("", {"t": 1}), ("",
     {"t": 2})]),
    ("offset in a column", "time,tz,t\n2023-10-28 14:00,+02:00,1\n2023-10-28 12:01,UTC,2\n", [("", {"t": 1}), ("",
     {"t": 2})]),
    ("MQTT log", "foo;topic;payload\n28.10.2023 12:00;home/t;1\n28.10.2023 12:01;home/t;2\n",
     [("", {"home_t": 1}), ("", {"home_t": 2})]),
    ("Excel", "\ufeffsep=;\r\nDatum;Uhrzeit;T °C\r\n28.10.2023;12:00;1,5\r\n28.10.2023;12:01;2\r\n",
     [("", {"t": 1.5}), ("", {"t": 2})]),
    ("a head line at each start", "#time,t\n2023-10-28 12:00:00,1\n# started again\ntime,t\n2023-10-28 12:01:00,2\n",
     [("", {"t": 1}), ("", {"t": 2})]),
    ("several stations", "Station,Zeit,T\nNord 1,2023-10-28 12:00:00,1\nSüd,2023-10-28 12:01:00,2\n",
     [("Nord_1", {"t": 1}), ("Sud", {"t": 2})]),
)  # fmt: skip


class Programs(unittest.TestCase):
    def test_files_of_many_programs_are_understood(self):
        for program, text, wanted in PROGRAMS:
            with self.subTest(program):
                found = rows_of(text)
                self.assertEqual([(node, values) for node, _, values in found], wanted)
                self.assertEqual({time[:16] for _, time, _ in found} - {AT[:16]}, {"2023-10-28T12:01"})

    def test_cell_in_another_unit_than_its_column_is_converted(self):
        later = "2023-10-28T12:01:00Z"
        for heading, first, second, wanted in (
            ("t", "20 °C", "68 °F", (20, 20)), ("t (°C)", "20", "68°F", (20, 20)), ("t", "68 °F", "20 °C", (68, 68)),
            ("t", "40%", "41 %RH", (40, 41)), ("p", "1013 hPa", "101300 Pa", (1013, 1013)), ("t", "20", "21", (20, 21)),
        ):  # fmt: skip
            found = rows_of(f"time,{heading}\n{AT},{first}\n{later},{second}\n")
            self.assertEqual([next(iter(one[2].values())) for one in found], list(wanted), (heading, first))
        long = rows_of(f"time,sensor,value\n{AT},t,20 °C\n{later},t,68 °F\n")
        self.assertEqual([one[2] for one in long], [{"t": 20}, {"t": 20}])

    def test_counters_and_ids_are_not_the_time(self):
        for heading in ("count", "pulses", "total", "meter_id", "Energy (Wh)", "Serial"):
            found = faults_of(f"{heading},t\n1600000001,5\n1600000002,6\n")
            self.assertEqual(found, f"the file: there is no column with a time; the columns are: {heading}, t")
        self.assertEqual(rows_of("x,t\n1698494400,5\n"), [("", AT, {"t": 5})])

    def test_annotated_csv_of_influxdb_is_understood(self):
        text = "".join(
            INFLUX.format(n, n + 0.5, field) for n, field in enumerate(("temperature", "humidity", "temperature"))
        )
        found = rows_of(text.replace("\n", "\r\n"))
        self.assertEqual(
            sorted((node, time[17:19], values) for node, time, values in found),
            [
                ("pi_1", "00", {"temperature": 0.5}),
                ("pi_1", "01", {"humidity": 1.5}),
                ("pi_1", "02", {"temperature": 2.5}),
            ],
        )

    def test_encodings_and_ends_of_lines_are_recognised(self):
        text = "Zeit;Temp (°C)\n2023-10-28 12:00;1,5\n2023-10-28 12:01;2,5\n"
        for data in (
            text.encode(), text.encode("utf-8-sig"), text.encode("utf-16"), b"\xfe\xff" + text.encode("utf-16-be"),
            text.encode("utf-16-le"), text.encode("cp1252"), text.replace("\n", "\r\n").encode(),
            text.replace("\n", "\r").encode(), text.replace("\n", "\r\n").encode("utf-16"), text.encode().rstrip(),
            text.replace(";", "\t").encode("latin-1"), text.replace(";", "|").encode(),
        ):  # fmt: skip
            found = inspected(data)
            self.assertEqual((found.summary.samples, found.units), (2, {("", "temp"): "°C"}), data[:20])
        self.assertEqual(inspected(text.encode("cp1252")).plan.not_utf8, 1)
        self.assertEqual(inspected(text.encode()).plan.not_utf8, 0)

    def test_decimal_character_is_that_of_the_file(self):
        for cells, wanted in (
            (("1.234,5", "1.000"), [1234.5, 1000]), (("1.234", "21.5"), [1.234, 21.5]), (("1,234", "21,5"), [1.234,
             21.5]),
            (("0.125", "1.500"), [0.125, 1.5]), (("1,234.5", "1,000"), [1234.5, 1000]), (("1,000", "2,000"), [1.0,
             2.0]),
        ):  # fmt: skip
            text = "time;a\n" + "".join(f"2023-10-28 12:0{k};{cell}\n" for k, cell in enumerate(cells))
            self.assertEqual([values["a"] for _, _, values in rows_of(text)], wanted, cells)
        quoted = 'time,a,b\n2023-10-28 12:00,"21,5","1.000"\n2023-10-28 12:01,"0,125",7\n'
        self.assertEqual([values for _, _, values in rows_of(quoted)], [{"a": 21.5, "b": 1000}, {"a": 0.125, "b": 7}])

    def test_later_rows_can_change_the_decimal_character_and_the_columns(self):
        rows = "".join(f"2023-10-28 12:{k // 60:02}:{k % 60:02};1.234;\n" for k in range(2500))
        for cells, wanted in (("21,5;N", {"a": 21.5}), ("21.5;3", {"a": 21.5, "b": 3}), ("1;---", {"a": 1})):
            found = rows_of(f"time;a;b\n{rows}2023-10-28 13:00:00;{cells}\n")
            self.assertEqual((len(found), found[-1][2]), (2501, wanted))
            self.assertEqual(found[0][2], {"a": 1234 if cells == "21,5;N" else 1.234})


class WithoutHeadLine(unittest.TestCase):
    def test_columns_are_named_by_the_user(self):
        for text, columns, wanted in (
            (
                "1553424480,nan,14.456,0\n1553424540,nan,12.35,0\n",
                "time,setpoint,pit,output",
                {"pit": 14.456, "output": 0},
            ),
            ("21.5,1698494400123,0\n", "temp,time,-", {"temp": 21.5}),
            ("2023-10-28;12:00;1,5\n", "date,time,t (°C)", {"t": 1.5}),
            ("x,y,z\n2023-10-28 12:00,1,2\n", "time,a,b", {"a": 1, "b": 2}),
            ("2023-10-28 12:00:00|1|OK\n", "time,t,status", {"t": 1}),
            ("# log\n\n1698494400\t1\t\n", "time,t", {"t": 1}),
        ):
            self.assertEqual(rows_of(text, columns=tuple(columns.split(",")))[0][2], wanted, text)

    def test_error_shows_how_to_name_them(self):
        for text, names in (
            ("1553424480,nan,14.456\n", "time,name2,name3"), ("21.5,1698494400123,OK\n", "name1,time,-"),
            ("28.10.2023 12:00;1,5\n", "time,name2"),
        ):  # fmt: skip
            self.assertIn(f"name its columns with --columns {names}", faults_of(text))
        self.assertIn(
            "--columns has 2 names, but line 1 has 3 cells", faults_of("1553424480,1,2\n", columns=("time", "a"))
        )


class Long(unittest.TestCase):
    def test_equal_and_long_names_of_sensors_stay_apart(self):
        start = "sensor.living_room_temperature_and_humidity"
        text = f"entity_id,state,last_changed\n{start}_temperature,1,{AT}\n{start}_humidity,2,{AT}\nsensor.t,3,{AT}\n"
        names = [name for _, name in inspected(text).counts]
        self.assertEqual((len(names), names[2], len({name[:28] for name in names[:2]})), (3, "t", 1))
        self.assertEqual(len(set(names)), 3)

    def test_units_of_a_sensor_are_made_equal(self):
        text = f"time,sensor,value,unit\n{AT},t,50,F\n2023-10-28 12:01,t,10,°C\n2023-10-28 12:02,p,5,hPa\n"
        self.assertEqual([values for _, _, values in rows_of(text)], [{"p": 5}, {"t": 50}, {"t": 50.0}])
        self.assertEqual(
            [values for _, _, values in rows_of(text, units={"t": "°C"})], [{"p": 5}, {"t": 10.0}, {"t": 10.0}]
        )

    def test_units_are_made_equal_with_options_for_other_sensors(self):
        text = f"time,sensor,value,unit\n{AT},t,50,°F\n2023-10-28 12:01,t,10,°C\n{AT},p,1,hPa\n"
        for options in ({"units": {"p": "Pa"}}, {"scales": {"p": 2}}, {"units": {"": "Pa"}}):
            with self.subTest(options):
                found = [values["t"] for _, _, values in rows_of(text, **options) if "t" in values]
                self.assertEqual(found, [50, 50])

    def test_unit_in_a_cell_has_priority_over_that_of_its_row(self):
        rows = [("20 °C", "°C"), ("68 °F", "°F"), ("68 °F", "°C"), ("20 °C", "°F"), ("68", "°F"), ("68 °F", "")]
        text = "".join(f"2023-10-28 12:0{k},t,{cell},{unit}\n" for k, (cell, unit) in enumerate(rows))
        found = rows_of(f"time,sensor,value,unit\n{text}")
        self.assertEqual([values["t"] for _, _, values in found], [20] * len(rows))

    def test_decimal_character_is_decided_as_in_a_column(self):
        for separator, cells, wanted in (
            (",", ("1,234", "20,5", "20.5"), [1234, 20.5, 20.5]), (";", ("1,234", "20,5", "20.5"), [1.234, 20.5, 20.5]),
            (",", ("1.234", "20,5", "20.5"), [1.234, 20.5, 20.5]), (";", ("1.234", "20,5"), [1234, 20.5]),
            (",", ("1,234", "20.5"), [1234, 20.5]), (",", ("1,234", "2,345"), [1234, 2345]),
            (";", ("1,234", "2.345"), [1.234, 2.345]),
        ):  # fmt: skip
            for head, start in (["time", "t"], []), (["time", "sensor", "value"], ["t"]):
                rows = [[f"2023-10-28 12:0{k}", *start, f'"{cell}"'] for k, cell in enumerate(cells)]
                text = "".join(separator.join(row) + "\n" for row in (head, *rows))
                with self.subTest(head, separator=separator, cells=cells):
                    self.assertEqual([values["t"] for _, _, values in rows_of(text)], wanted)

    def test_head_line_of_a_joined_file_is_no_sensor(self):
        for again in ("time,sensor,value", "\ufefftime,sensor,value", "time, sensor, value"):
            with self.subTest(again):
                text = f"time,sensor,value\n{AT},a,1\n{again}\n2023-10-28 12:01,a,2\n"
                self.assertEqual([values for _, _, values in rows_of(text)], [{"a": 1}, {"a": 2}])
                self.assertEqual(inspected(text).plan.left_out, [])

    def test_rows_with_the_same_time_are_one_reading(self):
        text = f"time,sensor,value\n{AT},a,1\n{AT},b,2\n2023-10-28 12:01,a,3\n"
        self.assertEqual([values for _, _, values in rows_of(text)], [{"a": 1, "b": 2}, {"a": 3}])


class Damaged(unittest.TestCase):
    def test_invalid_rows_are_left_out_and_named(self):
        good = "2023-10-28 12:0{},{},7\n".format
        for bad, said in (
            ("\0" * 40 + good(2, 9), "line 3: the row contains 40 zero bytes"), ("2023-10-28 12:02\n",
             "line 3: the row has 1 cell"),
            (good(2, "bad"), "line 3: a must be a number, not 'bad'"), ("noon,1,2\n",
             "line 3: 'noon' is not a valid time"),
            (good(2, '"9'), "line 3: a quotation mark is not closed"), (good(2, '"9"x'), "line 3: "),
            (good(2, "9" * 70_000), "line 3: the line is longer than 65,536 bytes"), (good(2, "1,2,3"),
             "line 3: the row has 5 cells"),
            (good(2, "1,\0"), "line 3: the row"), ("xx\n", "line 3: the row has 1 cell"),
            (good(2, "1e999"), "line 3: a is too large"), ("2023-02-30 12:02,1,2\n",
             "line 3: '2023-02-30 12:02' is not"),
        ):  # fmt: skip
            text = f"time,a,b\n{good(0, 1)}{bad}{good(3, 5)}"
            with self.subTest(bad[:50]):
                self.assertEqual([values["a"] for _, _, values in rows_of(text, skip_bad=True)], [1, 5])
                found = inspected(text, skip_bad=True)
                self.assertEqual(found.skipped_count, 1)
                self.assertTrue(str(found.skipped[0]).startswith(said), found.skipped[0])
                faults_of(text)

    def test_zero_bytes_in_a_column_that_is_left_out_are_found(self):
        text = "time,a,status\n2023-10-28 12:00,1,ok\n2023-10-28 12:01,2,o\0k\n2023-10-28 12:02,3,ok\n"
        self.assertIn("line 3: the row contains 1 zero byte", faults_of(text))
        self.assertEqual([values["a"] for _, _, values in rows_of(text, skip_bad=True)], [1, 3])

    def test_damaged_first_row_is_no_head_line(self):
        for bad in ("xx\n", "\0\0\n", "2023-\n", '"\n'):
            found = rows_of(f"time,a\n{bad}2023-10-28 12:00,1\n", skip_bad=True)
            self.assertEqual([values for _, _, values in found], [{"a": 1}], bad)

    def test_joined_files_with_marks_and_head_lines_are_read(self):
        part = "\ufefftime,a\n2023-10-28 12:0{},1\n".format
        self.assertEqual(len(rows_of(part(0) + part(1) + part(2))), 3)

    def test_archives_and_spreadsheets_are_named(self):
        for data in (b"PK\x03\x04" + b"x" * 99, b"\x1f\x8b\x08" + b"x" * 99, b"\xd0\xcf\x11\xe0" + b"\0" * 99):
            self.assertIn("this is an archive or a spreadsheet, not a text: unpack it", faults_of(data))

    def test_comments_between_the_rows_are_ignored(self):
        text = "a,time,b\n1,2023-10-28 12:00,N\n# started,2023-10-28 12:01,5\n2,2023-10-28 12:02,S\n"
        self.assertEqual([values for _, _, values in rows_of(text)], [{"a": 1}, {"a": 2}])

    def test_end_of_a_torn_file_is_left_out(self):
        for end in ("2023-10-2", "2023-10-28 12:01,", '2023-10-28 12:01,"', "\0\0\0", "2023-10-28 12:01,1"):
            self.assertEqual(len(rows_of(f"time,a,b\n2023-10-28 12:00,1,2\n{end}", skip_bad=True)), 1, end)

    def test_repeated_hour_and_invalid_rows_are_read_alike_again(self):
        text = "time,a\n2023-10-29 02:30,1\nx,y\n2023-10-29 02:00,2\n2023-10-29 02:30,3\n"
        found = [time[11:16] for _, time, _ in rows_of(text, zone=BERLIN, skip_bad=True)]
        self.assertEqual(found, ["00:30", "01:00", "01:30"])


class Options(unittest.TestCase):
    def test_option_for_an_unknown_sensor_is_an_error(self):
        for name in ("scales", "offsets"):
            text = f"--{name[:-1]}: there is no sensor q; the sensors are: a"
            self.assertIn(text, faults_of("time,a\n2023-10-28 12:00,1\n", **{name: {"q": 2.0}}))
        self.assertIn("which cannot be converted", faults_of("time,a (V)\n2023-10-28 12:00,1\n", units={"a": "°C"}))

    def test_values_are_converted(self):
        for options, wanted in (
            ({"units": {"temp": "°C"}}, {"temp": 10.0, "p": 1013}), ({"scales": {"p": 0.1}}, {"temp": 50, "p": 101.3}),
            ({"offsets": {"temp": -1.5}}, {"temp": 48.5, "p": 1013}), ({"scales": {"": 2.0}}, {"temp": 100.0,
             "p": 2026.0}),
            ({"units": {"": "°C"}}, {"temp": 10.0, "p": 1013}),
        ):  # fmt: skip
            self.assertEqual(rows_of("time,Temp (°F),p [hPa]\n2023-10-28 12:00,50,1013\n", **options)[0][2], wanted)

    def test_thingspeaks_json_has_the_names_of_its_fields(self):
        text = (
            '{"channel": {"id": 1, "name": "x", "field1": "Temperature", "field2": "Humidity"}, "feeds": ['
            '{"created_at": "2023-10-28T12:00:00Z", "entry_id": 1, "field1": "21.5", "field2": null}]}'
        )
        self.assertEqual(rows_of(text, "x.json"), [("", AT, {"temperature": 21.5})])
        self.assertEqual(rows_of(text, "x.json", scales={"": 2.0})[0][2], {"temperature": 43.0})


if __name__ == "__main__":
    unittest.main()
