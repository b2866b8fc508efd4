"""NamedTuple and Protocol without the module typing, which would cost a node 0.8 MiB of memory.

A type checker sees typing's own. Modules that a node loads import all else of typing under TYPE_CHECKING.
Source: "Typed version of namedtuple" in the documentation of typing; here without generic classes.
"""

from __future__ import annotations

import collections

TYPE_CHECKING = False  # what type checkers take for True by its name, as typing's

if TYPE_CHECKING:
    from typing import Any, NamedTuple, Protocol
else:

    class _NamedTupleMaker(type):
        """Makes a collections.namedtuple of a class body: fields, defaults and methods."""

        def __new__(cls, name: str, bases: tuple[type, ...], body: dict[str, Any]) -> type:
            fields = body.get("__annotations__", {})
            optional = [field for field in fields if field in body]
            if optional != list(fields)[len(fields) - len(optional) :]:
                raise TypeError(f"{name}: a field without default follows one with")
            defaults = [body[field] for field in optional]
            made = collections.namedtuple(name, fields, defaults=defaults, module=body["__module__"])
            made.__doc__ = body.get("__doc__")
            made.__annotations__ = fields
            for key, value in body.items():
                if key not in fields and not key.startswith("__"):
                    setattr(made, key, value)
            return made

    class Protocol:
        """At run time only a base class."""

    NamedTuple = type.__new__(_NamedTupleMaker, "NamedTuple", (), {})

__all__ = ("NamedTuple", "Protocol")
