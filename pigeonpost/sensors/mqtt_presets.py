"""Topics, JSON paths, units and words of programs and firmware that publish over MQTT: the presets of kind = "mqtt".

    preset = "zigbee2mqtt"    zigbee2mqtt/DEVICE            {"temperature": 21.4, "humidity": 48, "battery": 97}
    preset = "tasmota"        tele/DEVICE/SENSOR            {"Time": ..., "AM2301": {"Temperature": 21.4}, ...}
    preset = "esphome"        DEVICE/sensor/OBJECT/state    21.4
    preset = "shelly"         shellies/DEVICE/sensor/temperature, DEVICE/status/temperature:0, DEVICE/events/rpc

There is no state and no I/O here: sensors.mqtt uses the tables on a node, transports.mqtt_devices on the server.

A message of Tasmota contains a time, which is not used: it is a local time without a zone, and wrong until the device
has synchronised its clock. The times of the others are defined: `last_seen` of Zigbee2MQTT has a zone or is in ms since
1970, `ts` of Shelly is in s since 1970 (UTC).

Sources: Zigbee2MQTT, "MQTT Topics and Messages", "Device-Availability" and "Exposes"; Tasmota, "MQTT", "JSON Status
Responses", "AM2301" and "Power Monitoring Calibration"; ESPHome, "MQTT Client Component"; Shelly, "Gen1 Device API" and
"Gen2 Device API" (MQTT, Notifications, Switch, Temperature, Humidity, DevicePower).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple


class Place(NamedTuple):
    """A place at which a value can be.

    Attributes:
        topic: Topic. In the tables of this module, {device} and {value} in it are replaced.
        path: Keys in the JSON message; empty if the complete message is the value.
        is_nested: True if the path begins in one of the objects in the message, whose key is the type of a sensor.
        factor: Factor that converts the value to the unit of the channel.
    """

    topic: str
    path: Sequence[str] = ()
    is_nested: bool = False
    factor: float = 1.0


class PresetValue(NamedTuple):
    """A value that devices publish.

    Attributes:
        unit: Unit; empty if there is none, or if it depends on the device.
        places: All places at which it can be. Several generations of devices use different places.
        unit_key: Key in the message that contains the unit of this value, which is converted to `unit`; or empty.
        sleeps: True if devices with a battery publish it, which are offline between two messages.
    """

    unit: str
    places: Sequence[Place]
    unit_key: str = ""
    sleeps: bool = False


class Preset(NamedTuple):
    """The topics of one program or firmware.

    Attributes:
        values: The known values by name.
        usual: Names of the values that a node reads if no channels are chosen.
        availability: Topics that report if the device, or the program that serves it, is online.
        main: Topic of a channel that has only a path; empty if there is no such topic.
        other: Place of a value that is not in `values`; None if there are no others.
        wild: Topics, with +, of all values that the server reads in addition if no channels are chosen.
        time_path: Path of the time in a message, in ISO 8601 with a zone or in a number; empty if it is not used.
        time_unit_ms: Unit of a time that is a number, in ms.
    """

    values: Mapping[str, PresetValue]
    usual: Sequence[str] = ("temperature", "humidity")
    availability: Sequence[str] = ()
    main: str = ""
    other: Place | None = None
    wild: Sequence[str] = ()
    time_path: Sequence[str] = ()
    time_unit_ms: int = 1


# Numbers for words, in lower case. Shelly Door/Window (Gen1) sends open and close.
WORDS = {"true": 1, "on": 1, "open": 1, "false": 0, "off": 0, "closed": 0, "close": 0}
ONLINE_WORDS = {"online": True, "true": True, "offline": False, "false": False}
# Units in the messages of Tasmota ("Commands": SetOption8 and SetOption24).
UNIT_WORDS = {"C": "°C", "F": "°F", "hPa": "hPa", "mmHg": "mmHg", "inHg": "inHg"}
# The temperature of the ESP32 itself is among the sensors of Tasmota.
NOT_A_SENSOR = ("ESP32",)


def _zigbee(*units: tuple[str, str]) -> Mapping[str, PresetValue]:
    return {name: PresetValue(unit, (Place("zigbee2mqtt/{device}", (name,)),)) for name, unit in units}


# Exposes of Zigbee2MQTT. The unit of `voltage` is mV for batteries and V for plugs. `contact` is true if it is closed.
_ZIGBEE2MQTT = Preset(
    _zigbee(
        ("temperature", "°C"), ("humidity", "%"), ("pressure", "hPa"), ("battery", "%"), ("linkquality", ""),
        ("voltage", ""), ("current", "A"), ("power", "W"), ("energy", "kWh"), ("illuminance", "lx"), ("co2", "ppm"),
        ("pm25", "µg/m³"), ("voc", ""), ("soil_moisture", "%"), ("device_temperature", "°C"),
        ("local_temperature", "°C"), ("current_heating_setpoint", "°C"), ("occupied_heating_setpoint", "°C"),
        ("pi_heating_demand", "%"), ("occupancy", ""), ("presence", ""), ("contact", ""), ("water_leak", ""),
        ("smoke", ""), ("vibration", ""), ("tamper", ""), ("battery_low", ""), ("state", ""),
    ),
    availability=("zigbee2mqtt/{device}/availability", "zigbee2mqtt/bridge/state"),
    main="zigbee2mqtt/{device}", other=Place("zigbee2mqtt/{device}", ("{value}",)), time_path=("last_seen",),
)  # fmt: skip

_SENSOR, _STATE = "tele/{device}/SENSOR", "tele/{device}/STATE"


def _tasmota(unit: str, key: str, unit_key: str = "") -> PresetValue:
    return PresetValue(unit, (Place(_SENSOR, (key,), is_nested=True),), unit_key)


_TASMOTA = Preset(
    {
        "temperature": _tasmota("°C", "Temperature", "TempUnit"), "humidity": _tasmota("%", "Humidity"),
        "dew_point": _tasmota("°C", "DewPoint", "TempUnit"), "pressure": _tasmota("hPa", "Pressure", "PressureUnit"),
        "illuminance": _tasmota("lx", "Illuminance"), "co2": _tasmota("ppm", "CarbonDioxide"),
        "power": PresetValue("W", (Place(_SENSOR, ("ENERGY", "Power")),)),
        "voltage": PresetValue("V", (Place(_SENSOR, ("ENERGY", "Voltage")),)),
        "current": PresetValue("A", (Place(_SENSOR, ("ENERGY", "Current")),)),
        "energy": PresetValue("kWh", (Place(_SENSOR, ("ENERGY", "Total")),)),
        "energy_today": PresetValue("kWh", (Place(_SENSOR, ("ENERGY", "Today")),)),
        "state": PresetValue("", (Place(_STATE, ("POWER",)), Place(_STATE, ("POWER1",)))),
        "signal": PresetValue("dBm", (Place(_STATE, ("Wifi", "Signal")),)),
    },
    availability=("tele/{device}/LWT",), main=_SENSOR, other=Place(_SENSOR, ("{value}",), is_nested=True),
)  # fmt: skip

_ESPHOME = Preset(
    {
        name: PresetValue(unit, (Place(f"{{device}}/sensor/{name}/state"),))
        for name, unit in (("temperature", "°C"), ("humidity", "%"), ("pressure", "hPa"))
    },
    availability=("{device}/status",), other=Place("{device}/{value}/state"),
    wild=("{device}/sensor/+/state", "{device}/binary_sensor/+/state", "{device}/switch/+/state"),
)  # fmt: skip


def _shelly(unit: str, gen1: str, component: str, *path: str, factor: float = 1.0, sleeps: bool = False) -> PresetValue:
    """Return a value of Shelly: a topic of Gen1, and a component and a path of Gen2 and later."""
    places = [Place(f"shellies/{{device}}/{gen1}", factor=factor)] if gen1 else []
    places += [
        Place(f"{{device}}/status/{component}", path), Place("{device}/events/rpc", ("params", component, *path)),
    ]  # fmt: skip
    return PresetValue(unit, places, sleeps=sleeps)


_SHELLY = Preset(
    {
        "temperature": _shelly("°C", "sensor/temperature", "temperature:0", "tC", sleeps=True),
        "humidity": _shelly("%", "sensor/humidity", "humidity:0", "rh", sleeps=True),
        "battery": _shelly("%", "sensor/battery", "devicepower:0", "battery", "percent", sleeps=True),
        "illuminance": _shelly("lx", "sensor/lux", "illuminance:0", "lux", sleeps=True),
        "flood": _shelly("", "sensor/flood", "flood:0", "alarm", sleeps=True),
        "open": PresetValue("", (Place("shellies/{device}/sensor/state"),), sleeps=True),
        "state": _shelly("", "relay/0", "switch:0", "output"),
        "power": _shelly("W", "relay/0/power", "switch:0", "apower"),
        # Gen1 counts watt-minutes, Gen2 watt-hours.
        "energy": _shelly("Wh", "relay/0/energy", "switch:0", "aenergy", "total", factor=1 / 60),
        "voltage": _shelly("V", "", "switch:0", "voltage"), "current": _shelly("A", "", "switch:0", "current"),
        "device_temperature": _shelly("°C", "temperature", "switch:0", "temperature", "tC"),
        "meter_power": _shelly("W", "emeter/0/power", "pm1:0", "apower"),
        "total_power": _shelly("W", "", "em:0", "total_act_power"),
    },
    availability=("shellies/{device}/online", "{device}/online"), time_path=("params", "ts"), time_unit_ms=1000,
)  # fmt: skip

PRESETS: Mapping[str, Preset] = {
    "esphome": _ESPHOME, "shelly": _SHELLY, "tasmota": _TASMOTA, "zigbee2mqtt": _ZIGBEE2MQTT,
}  # fmt: skip


def filled(text: str, device: str, value: str = "") -> str:
    """Return a topic or a key of a preset, with the names of the device and the value.

    Args:
        text: The topic or key.
        device: Name of the device.
        value: Name of the value, for the place of a value that is not in the table.
    """
    return text.replace("{device}", device).replace("{value}", value)


def preset_value(preset: Preset, device: str, name: str) -> PresetValue | None:
    """Return a value of a device with its places, or None if the preset has no value with that name.

    Args:
        preset: The preset.
        device: Name of the device, as in its topics.
        name: Name of the value. For ESPHome, this is the id of a sensor, or the type and the id of another component,
            such as `binary_sensor/motion`.
    """
    found = preset.values.get(name)
    if found is None and preset.other is not None:
        is_component = preset is _ESPHOME and "/" not in name
        found, name = PresetValue("", (preset.other,)), f"sensor/{name}" if is_component else name
    if found is None:
        return None
    places = [
        place._replace(
            topic=filled(place.topic, device, name), path=tuple(filled(key, device, name) for key in place.path)
        )
        for place in found.places
    ]
    return found._replace(places=places)


def availability_topics(preset: Preset, device: str) -> list[str]:
    """Return the topics of `preset` that report if `device` is online."""
    return [filled(topic, device) for topic in preset.availability]
