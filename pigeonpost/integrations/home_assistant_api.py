"""Commands of Home Assistant's WebSocket API: authentication, entities, and statistics.

Threads: one thread uses a session. Errors: HttpError without a connection, LoginRefused, NotReady, CommandRefused.
Source: homeassistant 2026.2, components/websocket_api, components/recorder/websocket_api.py,
components/config/entity_registry.py; tests/data/home_assistant.json.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pigeonpost.core.clock import rfc3339
from pigeonpost.core.errors import PigeonpostError
from pigeonpost.core.http_client import HttpError, ServerTrust, Url
from pigeonpost.core.redact import HIDDEN
from pigeonpost.core.strict_json import write_json
from pigeonpost.core.tolerant_json import read_tolerant_json
from pigeonpost.core.websocket import WebSocket

PATH = "api/websocket"
TIMEOUT_S = 30.0
_UNAUTHORIZED = "unauthorized"  # components/websocket_api/const.py
_TOKEN_REMEDY = "set [home_assistant] token to a long-lived access token of an administrator"


class LoginRefused(PigeonpostError, PermissionError):
    """Home Assistant does not accept the token, or its user is no administrator."""


class NotReady(PigeonpostError, OSError):
    """Home Assistant is starting."""


class CommandRefused(PigeonpostError, ValueError):
    """Home Assistant does not execute a command."""


class Entity(NamedTuple):
    """Entity of Home Assistant.

    Attributes:
        entity_id: Its present id.
        is_disabled: True if Home Assistant records nothing for it.
    """

    entity_id: str
    is_disabled: bool


class StatisticsInfo(NamedTuple):
    """Form in which Home Assistant stores the statistics of an entity.

    Attributes:
        name: Name; None for the name of the entity.
        unit: Unit; None if there is none.
        unit_class: Class of units among which it converts; None if it does not convert.
        mean_type: 0 without a mean, 1 for the arithmetic mean, 2 for the mean of an angle.
        has_sum: True for a total.
    """

    name: str | None
    unit: str | None
    unit_class: str | None
    mean_type: int
    has_sum: bool


class ApiSession:
    """Session of the WebSocket API, which is open and authenticated after `open`.

    Args:
        url: Address of Home Assistant.
        token: Long-lived access token.
        trust: Trusted servers for https; None for those that the system trusts.
    """

    def __init__(self, url: Url, token: str, trust: ServerTrust | None = None) -> None:
        self._socket = WebSocket(url._replace(target=f"{url.target.rstrip('/')}/{PATH}"), TIMEOUT_S, trust)
        self._token = token
        self._id = 0

    def open(self) -> None:
        """Connect and authenticate.

        Raises:
            HttpError: There is no connection.
            LoginRefused: The token is invalid, or does not belong to an administrator.
            NotReady: Home Assistant is starting.
        """
        self._socket.connect()
        if self._receive().get("type") != "auth_required":
            raise HttpError("this is not the WebSocket API of Home Assistant", self._socket.server)
        self._socket.send(write_json({"type": "auth", "access_token": self._token}))
        answer = self._receive().get("type")
        if answer != "auth_ok":
            raise LoginRefused(f"Home Assistant does not accept the token: {_TOKEN_REMEDY}")
        if _mapping(self.call("auth/current_user")).get("is_admin") is not True:
            raise LoginRefused(f"the token does not belong to an administrator: {_TOKEN_REMEDY}")
        if _mapping(self.call("get_config")).get("state") != "RUNNING":
            raise NotReady("Home Assistant is starting")

    def close(self) -> None:
        """Close the session."""
        self._socket.close()

    def cut(self) -> None:
        """Abort the call of another thread."""
        self._socket.cut()

    def call(self, command: str, **fields: Any) -> Any:
        """Execute a command and return its result.

        Raises:
            HttpError: The connection is lost.
            LoginRefused: The user of the token may not use this command.
            CommandRefused: Home Assistant does not execute it.
        """
        self._id += 1
        self._socket.send(write_json({"id": self._id, "type": command, **fields}))
        deadline_s = time.monotonic() + TIMEOUT_S
        while True:
            answer = self._receive(deadline_s - time.monotonic())
            if answer.get("id") == self._id and answer.get("type") == "result":
                break
        if answer.get("success") is True:
            return answer.get("result")
        error = _mapping(answer.get("error"))
        if error.get("code") == _UNAUTHORIZED:
            raise LoginRefused(f"the token does not belong to an administrator: {_TOKEN_REMEDY}")
        why = str(error.get("message") or error.get("code")).replace(self._token, HIDDEN)  # before it is cut
        raise CommandRefused(f"{command}: {why[:200]}")

    def entities(self, prefix: str) -> dict[str, Entity]:
        """Return the MQTT entities whose unique ids begin with `prefix`, by unique id."""
        found = {}
        for entry in _list(self.call("config/entity_registry/list")):
            one = entry.get("unique_id")
            if entry.get("platform") == "mqtt" and isinstance(one, str) and one.startswith(prefix):
                found[one] = Entity(str(entry.get("entity_id")), entry.get("disabled_by") is not None)
        return found

    def statistics_info(self, entity_ids: Sequence[str]) -> dict[str, StatisticsInfo]:
        """Return the form of the statistics of `entity_ids`. Entities without statistics are absent."""
        found = {}
        for entry in _list(self.call("recorder/get_statistics_metadata", statistic_ids=list(entity_ids))):
            if entry.get("source") == "recorder":
                found[str(entry.get("statistic_id"))] = StatisticsInfo(
                    _text(entry.get("name")), _text(entry.get("statistics_unit_of_measurement")),
                    _text(entry.get("unit_class")), _int(entry.get("mean_type")), entry.get("has_sum") is True,
                )  # fmt: skip
        return found

    def hours(
        self, entity_id: str, info: StatisticsInfo, first: int, last: int, types: Sequence[str]
    ) -> list[Mapping[str, Any]]:
        """Return the stored statistics of hours, oldest first.

        Args:
            entity_id: Id of the entity.
            info: Form of its statistics.
            first: First hour, in hours since 1970 (UTC).
            last: Last hour, which is included.
            types: Wanted values: mean, min, max, state, sum.

        Returns:
            One dictionary per hour with `start` (ms since 1970, UTC) and the `types`, in the unit of `info`.
        """
        units = {"units": {info.unit_class: info.unit}} if info.unit_class else {}
        found = self.call(
            "recorder/statistics_during_period", start_time=_hour(first), end_time=_hour(last + 1),
            statistic_ids=[entity_id], period="hour", types=list(types), **units,
        )  # fmt: skip
        return _list(_mapping(found).get(entity_id))

    def import_hours(self, entity_id: str, info: StatisticsInfo, hours: Mapping[int, Mapping[str, float]]) -> None:
        """Store the statistics of hours, and replace those that exist.

        Home Assistant answers before it has written them: see `hours`.

        Args:
            entity_id: Id of the entity.
            info: Form of its statistics.
            hours: Statistics (mean, min and max, or state and sum) by hour, in hours since 1970 (UTC).
        """
        metadata = {
            "statistic_id": entity_id, "source": "recorder", "name": info.name, "unit_of_measurement": info.unit,
            "unit_class": info.unit_class, "mean_type": info.mean_type, "has_sum": info.has_sum,
        }  # fmt: skip
        stats = [{"start": _hour(hour), **values} for hour, values in sorted(hours.items())]
        self.call("recorder/import_statistics", metadata=metadata, stats=stats)

    def _receive(self, limit_s: float = TIMEOUT_S) -> Mapping[str, Any]:
        text = self._socket.receive(limit_s)
        try:
            return _mapping(read_tolerant_json(text.encode()))
        except ValueError:
            raise HttpError("this is not the WebSocket API of Home Assistant", self._socket.server) from None


def _hour(hour: int) -> str:
    """Return the start of an hour with its zone: 2026-11-20T15:00:00+00:00."""
    return f"{rfc3339(hour * 3_600_000)[:19]}+00:00"


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Mapping[str, Any]]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _int(value: Any) -> int:
    return value if type(value) is int else 0
