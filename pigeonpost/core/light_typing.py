"""NamedTuple and Protocol without the module typing, which would need 0.8 MiB of a node's memory.

A type checker uses the originals of typing. Modules that a node loads import all other names of typing only under
TYPE_CHECKING. Source: "Typed version of namedtuple" in the documentation of typing. Generic classes are not supported.
"""

from __future__ import annotations

import collections

TYPE_CHECKING = False  # type checkers assume True because of the name, as for typing.TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any, NamedTuple, Protocol
else:

    class _NamedTupleMaker(type):
        """Metaclass that turns a class body into a collections.namedtuple with its fields, defaults and methods."""

        def __new__(cls, name: str, bases: tuple[type, ...], body: dict[str, Any]) -> type:
            fields = body.get("__annotations__", {})
            optional = [field for field in fields if field in body]
            if optional != list(fields)[len(fields) - len(optional) :]:
                raise TypeError(f"{name}: a field without a default follows a field with one")
            defaults = [body[field] for field in optional]
            made = collections.namedtuple(name, fields, defaults=defaults, module=body["__module__"])
            made.__doc__ = body.get("__doc__")
            made.__annotations__ = fields
            for key, value in body.items():
                if key not in fields and not key.startswith("__"):
                    setattr(made, key, value)
            return made

    class Protocol:
        """Base class that does nothing at run time."""

    NamedTuple = type.__new__(_NamedTupleMaker, "NamedTuple", (), {})

__all__ = ("NamedTuple", "Protocol")
