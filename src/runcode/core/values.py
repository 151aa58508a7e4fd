"""Immutable value types without the start-up price of `dataclasses`.

Owns: `Value`, the base of every record in `core` and `client`. `dataclasses`
pulls in `inspect`, `ast` and `dis`: about 6 ms here, as much as a whole warm
`ssh`. Type checkers see subclasses as frozen, keyword-only dataclasses.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, ClassVar, dataclass_transform
else:

    def dataclass_transform(**_options):
        return lambda cls: cls


@dataclass_transform(frozen_default=True, kw_only_default=True)
class Value:
    """A frozen record: fields are the class's annotations, all given by keyword.

    Equality and hash are by type and fields. A field assigned in the class body
    has that value as its default.
    """

    _fields: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls) -> None:
        own = tuple(n for n in cls.__dict__.get("__annotations__", {}) if not n.startswith("_"))  # noqa: RUF063 (inspect costs 6 ms)
        cls._fields = cls._fields + tuple(n for n in own if n not in cls._fields)

    def __init__(self, **given: Any) -> None:
        for name in self._fields:
            if name in given:
                self.__dict__[name] = given.pop(name)
            elif not hasattr(type(self), name):
                raise TypeError(f"{type(self).__name__} needs {name}")
        if given:
            raise TypeError(f"{type(self).__name__} has no field {sorted(given)[0]}")

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{type(self).__name__} is immutable")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{type(self).__name__} is immutable")

    def _astuple(self) -> tuple[Any, ...]:
        return tuple(getattr(self, name) for name in self._fields)

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self._astuple() == other._astuple()

    def __hash__(self) -> int:
        return hash((type(self), self._astuple()))

    def __repr__(self) -> str:
        inner = ", ".join(f"{name}={getattr(self, name)!r}" for name in self._fields)
        return f"{type(self).__name__}({inner})"
