"""Model of Home Assistant's WebSocket API, which checks each command by its schema in tests/data."""

from __future__ import annotations

import json
from typing import Any

from pigeonpost.core.clock import parse_rfc3339
from pigeonpost.storage.models import HOUR_MS
from tests.integrations.ha_checker import FACTS, check, check_command

_STATISTICS = ("mean", "min", "max", "state", "sum")


class FakeApi:
    """Server's side of the API, without a connection.

    Attributes:
        token: The valid token.
        is_admin: True if it belongs to an administrator.
        state: State of Home Assistant.
        registry: Entries of the entity registry.
        metadata: Metadata of the statistics by entity id.
        hours: Statistics by entity id and hour, in hours since 1970 (UTC).
        is_writing: False if accepted statistics are not written.
        imports: Number of accepted commands recorder/import_statistics.
        sessions: Number of connections.
        refused: Reasons why commands are not executed, by command.
        faults: Violations of the schemas.
    """

    def __init__(self, token: str = "secret") -> None:
        self.token, self.is_admin, self.state = token, True, "RUNNING"
        self.registry: list[dict[str, Any]] = []
        self.metadata: dict[str, dict[str, Any]] = {}
        self.hours: dict[str, dict[int, dict[str, Any]]] = {}
        self.is_writing = True
        self.imports = self.sessions = 0
        self.refused: dict[str, str] = {}
        self.faults: list[str] = []

    def add(self, entity_id: str, unique_id: str, unit: str | None, has_sum: bool = False, **more: Any) -> None:
        """Add an entity whose statistics have this unit."""
        self.registry.append(
            {"entity_id": entity_id, "unique_id": unique_id, "platform": "mqtt", "disabled_by": None, **more}
        )
        self.metadata[entity_id] = {
            "statistic_id": entity_id, "display_unit_of_measurement": unit, "has_mean": not has_sum,
            "mean_type": 0 if has_sum else 1, "has_sum": has_sum, "name": None, "source": "recorder",
            "statistics_unit_of_measurement": unit,
            "unit_class": FACTS["primary_unit_classes"].get(unit) if unit else None,
        }  # fmt: skip

    def session(self) -> FakeSession:
        """Return a new session."""
        self.sessions += 1
        return FakeSession(self)


class FakeSession:
    """One connection."""

    def __init__(self, api: FakeApi) -> None:
        self._api, self._is_authenticated, self._last_id = api, False, 0

    def greeting(self) -> str:
        return json.dumps({"type": "auth_required", "ha_version": FACTS["version"]})

    def answer(self, text: str) -> list[str]:
        """Return the answers to a message."""
        try:
            message = json.loads(text)
            return [json.dumps(one) for one in self._answers(message)]
        except Exception as error:
            self._api.faults.append(f"{type(error).__name__}: {error}: {text[:500]}")
            return []

    def _answers(self, message: dict[str, Any]) -> list[dict[str, Any]]:
        api = self._api
        if not self._is_authenticated:
            check(message.keys() == {"type", "access_token"} and message["type"] == "auth", "authentication")
            self._is_authenticated = message["access_token"] == api.token
            if not self._is_authenticated:
                return [{"type": "auth_invalid", "message": "Invalid access token or password"}]
            return [{"type": "auth_ok", "ha_version": FACTS["version"]}]
        check_command(message)
        check(message["id"] > self._last_id, "ids must increase")
        self._last_id = message["id"]
        is_import = message["type"] == "recorder/import_statistics"
        if is_import and not api.is_admin:
            return [self._result(message, None, {"code": "unauthorized", "message": "Unauthorized"})]
        if message["type"] in api.refused:
            error = {"code": "unknown_command", "message": api.refused[message["type"]]}
            return [self._result(message, None, error)]
        return [{"id": 999_999, "type": "event"}, self._result(message, self._execute(message))]

    def _result(self, message: dict[str, Any], result: Any, error: Any = None) -> dict[str, Any]:
        more = {"result": result} if error is None else {"error": error}
        return {"id": message["id"], "type": "result", "success": error is None, **more}

    def _execute(self, message: dict[str, Any]) -> Any:
        api = self._api
        match message["type"]:
            case "auth/current_user":
                return {"id": "1", "name": "pi", "is_owner": False, "is_admin": api.is_admin}
            case "get_config":
                return {"state": api.state, "version": FACTS["version"]}
            case "config/entity_registry/list":
                return api.registry
            case "recorder/get_statistics_metadata":
                return [api.metadata[one] for one in message["statistic_ids"] if one in api.metadata]
            case "recorder/statistics_during_period":
                return self._during(message)
            case "recorder/import_statistics":
                return self._import(message)
        raise AssertionError(message)

    def _during(self, message: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
        first, end = (_hour(message[key]) for key in ("start_time", "end_time"))
        found = {}
        for one in message["statistic_ids"]:
            unit_class = self._api.metadata[one]["unit_class"]
            units = message.get("units", {})
            check(
                units.get(unit_class) == self._api.metadata[one]["statistics_unit_of_measurement"] or not unit_class,
                "units",
            )
            rows = sorted(self._api.hours.get(one, {}).items())
            found[one] = [
                {"start": hour * HOUR_MS, **{key: row.get(key) for key in message["types"]}}
                for hour, row in rows if first <= hour < end
            ]  # fmt: skip
        return {one: rows for one, rows in found.items() if rows}

    def _import(self, message: dict[str, Any]) -> None:
        metadata = message["metadata"]
        known = self._api.metadata[metadata["statistic_id"]]
        for key, theirs in (("unit_of_measurement", "statistics_unit_of_measurement"), ("unit_class", "unit_class"),
                            ("mean_type", "mean_type"), ("has_sum", "has_sum"), ("name", "name")):  # fmt: skip
            check(metadata[key] == known[theirs], f"the import would change {key} of {metadata['statistic_id']}")
        self._api.imports += 1
        if self._api.is_writing:
            rows = self._api.hours.setdefault(metadata["statistic_id"], {})
            for row in message["stats"]:
                rows[_hour(row["start"])] = {key: row[key] for key in _STATISTICS if key in row}


def _hour(text: str) -> int:
    time_ms = parse_rfc3339(text)
    check(time_ms % HOUR_MS == 0, text)
    return time_ms // HOUR_MS
