"""The rules of the settings file, those edited on the page, and the default rule about silent nodes.

The rules of the page are in a JSON file of the data folder: `{"rules": [{"sensor": "temperature", "above": 40}]}`.
Errors: SettingsError for invalid rules; DiskError.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pigeonpost.alerts.contract import AlertRule
from pigeonpost.alerts.rules import Rule, default_silence, read_rules
from pigeonpost.core.errors import DamagedFile, SettingsError

if TYPE_CHECKING:
    from pigeonpost.core.json_file import JsonFile

ON_PAGE = "rules of the page"  # place of these rules in error messages
MOST_RULES = 500  # rules of the page


class RuleSets:
    """All rules, by origin.

    Attributes:
        shortest_s: Shortest time after which the default rule reports a silent node, in seconds; 0: no such rule.
        fault: Reason why the rules of the page could not be read; empty if there is none.
    """

    def __init__(
        self,
        rules: Sequence[Rule],
        tables: Sequence[Mapping[str, Any]] = (),
        file: JsonFile[list[Any]] | None = None,
        shortest_s: float = 0.0,
    ) -> None:
        """Read the rules of the page.

        Args:
            rules: Rules of the settings file.
            tables: Their tables.
            file: File of the rules of the page; None if there is none.
            shortest_s: Shortest time after which the default rule reports a silent node, in seconds; 0: no such rule.
        """
        self.shortest_s = shortest_s
        self._settings = list({rule.key: rule for rule in rules}.values())
        self._tables = tables if tables else [{} for _ in rules]
        self._named = list(rules)
        self._file = file
        self._page: list[Rule] = []
        self._page_tables: Sequence[Mapping[str, Any]] = []
        self.fault = ""
        try:
            tables = file.now().get("rules", []) if file is not None else []
            self.use(self._read(tables), tables)
        except (SettingsError, DamagedFile) as error:
            self.fault = f"{str(error).removeprefix(f'{ON_PAGE}: ')}; save the rules on the page again"

    def all(self) -> list[Rule]:
        """Return all rules that apply."""
        rules = [*self._settings, *self._page]
        if self.shortest_s and not any(rule.condition_kind == "silent" and not rule.node for rule in rules):
            rules.append(default_silence())
        return rules

    def listed(self) -> list[AlertRule]:
        """Return all rules for the page."""
        found = [AlertRule(_title(rule), "settings", table) for rule, table in zip(self._named, self._tables)]
        found += [AlertRule(_title(rule), "page", table) for rule, table in zip(self._page, self._page_tables)]
        default = self.all()[len(self._settings) + len(self._page) :]
        return found + [AlertRule(_title(rule), "default", {"kind": "silent"}) for rule in default]

    def store(self, tables: Sequence[Mapping[str, Any]]) -> list[Rule]:
        """Check the rules in `tables`, store them as those of the page, and return them.

        Raises:
            SettingsError: A table is invalid, or there is no file.
            DiskError: The rules cannot be stored.
        """
        rules = self._read(tables)
        if self._file is None:
            raise SettingsError(f"{ON_PAGE}: they cannot be stored")
        self._file.write({"rules": [dict(table) for table in tables]})
        return rules

    def use(self, rules: Sequence[Rule], tables: Sequence[Mapping[str, Any]]) -> None:
        """Use `rules`, the result of `store` with these `tables`, as the rules of the page."""
        self._page, self._page_tables = list(rules), [dict(table) for table in tables]

    def _read(self, tables: Any) -> list[Rule]:
        if not isinstance(tables, list | tuple) or not all(isinstance(table, Mapping) for table in tables):
            raise SettingsError(f"{ON_PAGE}: they must be a list of tables")
        if len(tables) > MOST_RULES:
            raise SettingsError(f"{ON_PAGE}: at most {MOST_RULES} rules are possible, not {len(tables)}")
        rules = read_rules(tables, ON_PAGE)
        known = {rule.key for rule in self._settings}
        for count, rule in enumerate(rules, 1):
            if rule.key in known:
                raise SettingsError(
                    f"{ON_PAGE}: [[alert]] {count}: an alert with this name or condition exists already; change `name`"
                )
            known.add(rule.key)
        return rules


def _title(rule: Rule) -> str:
    return rule.name or rule.condition()
