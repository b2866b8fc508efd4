"""Extraction of the facts about Home Assistant that the tests check: keys, units, classes and commands. Run by hand.

    pip download --no-deps --python-version 3.14 --only-binary=:all: homeassistant
    python3.13 -m tests.home_assistant_facts homeassistant-VERSION-py3-none-any.whl

It imports the schemas of the wheel, so it needs a Python that Home Assistant accepts, with most of its requirements
(the Requires-Dist lines of the wheel's METADATA, and paho-mqtt and numpy). It writes tests/data/home_assistant.json,
which contains names only, and no source text.
"""

from __future__ import annotations

import enum
import importlib
import importlib.abc
import importlib.machinery
import json
import os
import re
import sys
import types
import zipfile
from typing import Any

PATH = os.path.join(os.path.dirname(__file__), "data", "home_assistant.json")
PLATFORMS = ("sensor", "binary_sensor", "switch", "number", "button")
COMMANDS = {
    "homeassistant.components.recorder.websocket_api": (
        "ws_import_statistics", "ws_get_statistics_metadata", "ws_get_statistics_during_period",
    ),
    "homeassistant.components.config.entity_registry": ("websocket_list_entities",),
    "homeassistant.components.websocket_api.commands": ("handle_get_config",),
    "homeassistant.components.auth": ("websocket_current_user",),
}  # fmt: skip


class _Cloud(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Empty replacement of the library of Home Assistant's cloud, which the schemas do not use."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name.partition(".")[0] == "hass_nabucasa":
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: Any) -> types.ModuleType:
        module = types.ModuleType(spec.name)
        module.__getattr__ = lambda name: type(name, (Exception,), {})  # type: ignore[method-assign]
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        pass


def described(schema: Any) -> Any:
    """Return a voluptuous schema as JSON. Functions are described by their names."""
    kind = type(schema).__name__
    if kind == "Schema":
        return described(schema.schema)
    if isinstance(schema, dict):
        return {"keys": {
            str(key): {"required": type(key).__name__ == "Required", "value": described(value)}
            for key, value in sorted(schema.items(), key=lambda pair: str(pair[0]))
        }}  # fmt: skip
    if isinstance(schema, list):
        return {"list": described(schema[0])}
    if kind in ("All", "Any"):
        return {kind.lower(): [described(part) for part in schema.validators]}
    if kind == "In":
        return {"in": _values(schema.container)}
    if kind == "Coerce":
        return described(schema.type)
    if isinstance(schema, type) and issubclass(schema, enum.Enum):
        return {"in": _values(schema)}
    if isinstance(schema, str | int | float | bool | None):
        return {"is": schema}
    return getattr(schema, "__name__", kind)


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, enum.Enum) else value


def _keys(schema: Any) -> dict[str, Any]:
    """Return the keys of a schema that may be a sequence of validators."""
    parts = [schema] if not hasattr(schema, "validators") else list(schema.validators)
    return next(found["keys"] for part in parts if isinstance(found := described(part), dict) and "keys" in found)


def _values(values: Any) -> list[str | None]:
    return sorted((_plain(value) for value in values), key=str)


def _abbreviations(known: set[str]) -> dict[str, dict[str, str]]:
    module = importlib.import_module("homeassistant.components.mqtt.abbreviations")
    of_entities = {short: key for short, key in module.ABBREVIATIONS.items() if key in known}
    return {
        "entity": of_entities, "device": dict(module.DEVICE_ABBREVIATIONS), "origin": dict(module.ORIGIN_ABBREVIATIONS)
    }  # fmt: skip


def facts(version: str) -> dict[str, Any]:
    """Return all facts. The wheel must be importable."""
    mqtt = "homeassistant.components.mqtt"
    schemas = importlib.import_module(f"{mqtt}.schemas")
    message = _keys(schemas.DEVICE_DISCOVERY_SCHEMA)
    platforms = {name: _keys(importlib.import_module(f"{mqtt}.{name}").DISCOVERY_SCHEMA) for name in PLATFORMS}
    sensor = importlib.import_module("homeassistant.components.sensor.const")
    binary = importlib.import_module("homeassistant.components.binary_sensor")
    statistics = importlib.import_module("homeassistant.components.recorder.statistics")
    ambiguous = importlib.import_module("homeassistant.const") if not hasattr(sensor, "AMBIGUOUS_UNITS") else sensor
    known = {key for keys in (message, *platforms.values()) for key in keys}
    commands = {}
    for module, names in COMMANDS.items():
        for name in names:
            function = getattr(importlib.import_module(module), name)
            keys = _keys(function._ws_schema) if function._ws_schema else {}
            commands[function._ws_command] = keys
    return {
        "version": version,
        "message": message,
        "device": _keys(schemas.MQTT_ENTITY_DEVICE_INFO_SCHEMA),
        "origin": _keys(schemas.MQTT_ORIGIN_INFO_SCHEMA),
        "shared": sorted(schemas.SHARED_OPTIONS),
        "platforms": platforms,
        "abbreviations": _abbreviations(known),
        "device_classes": {
            one.value: {
                "units": _values(sensor.DEVICE_CLASS_UNITS[one]) if one in sensor.DEVICE_CLASS_UNITS else None,
                "state_classes": _values(sensor.DEVICE_CLASS_STATE_CLASSES.get(one, ())),
            } for one in sensor.SensorDeviceClass
        },
        "non_numeric": _values(sensor.NON_NUMERIC_DEVICE_CLASSES),
        "state_class_units": {_plain(one): _values(units) for one, units in sensor.STATE_CLASS_UNITS.items()},
        "ambiguous_units": {str(one): _plain(other) for one, other in ambiguous.AMBIGUOUS_UNITS.items()},
        "binary_sensor_classes": _values(binary.BinarySensorDeviceClass),
        "commands": commands,
        "unit_classes": {
            one: _values(converter.VALID_UNITS)
            for one, converter in statistics.UNIT_CLASS_TO_UNIT_CONVERTER.items() if one
        },
        "primary_unit_classes": {
            str(unit): converter.UNIT_CLASS
            for unit, converter in statistics.STATISTIC_UNIT_TO_UNIT_CONVERTER.items() if unit
        },
    }  # fmt: skip


def main() -> None:
    """Write the facts of the wheel that is the argument of this program."""
    wheel = sys.argv[1]
    sys.path.insert(0, wheel)
    sys.meta_path.append(_Cloud())
    found = re.search(r"homeassistant-([0-9.a-z]+?)-py3", os.path.basename(wheel))
    version = found[1] if found and zipfile.is_zipfile(wheel) else "unknown"
    text = json.dumps(facts(version), ensure_ascii=False, indent=1, sort_keys=True)
    with open(PATH, "w", encoding="utf-8") as file:
        file.write(f"{text}\n")
    print(f"{PATH}: facts of Home Assistant {version}")


if __name__ == "__main__":
    main()
