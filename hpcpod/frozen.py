# SPDX-License-Identifier: Apache-2.0
"""Frozen records for facts and plans, without the start-up cost of :mod:`dataclasses`.

``dataclasses`` imports ``inspect`` and compiles six functions per class: with the thirty classes that a
preparation needs that is twice the time of starting Python itself (docs/adr/0005), and the ranks of a node
wait for it.  What is here does the same for the one kind of class that this project has: fields by
annotation, defaults, equality by type and fields, hashing, ``match`` patterns; no inheritance, no mutable
records.  Type checkers know it as a dataclass (typing.dataclass_transform, PEP 681).
"""

from __future__ import annotations

TYPE_CHECKING = False  # importing typing would be a sixth of a preparation's start (docs/adr/0005)
if TYPE_CHECKING:
    from typing import NoReturn, TypeVar, dataclass_transform

    T = TypeVar("T")
else:

    def dataclass_transform(**_):
        """Do what it does while a program runs: nothing."""
        return lambda decorator: decorator


def _init(self: object, *values: object, **named: object) -> None:
    fields: tuple[str, ...] = self.__match_args__  # type: ignore[attr-defined]
    if len(values) > len(fields):
        raise TypeError(f"{type(self).__name__}: takes {len(fields)} fields, got {len(values)}")
    given = dict(zip(fields, values, strict=False))
    for name in named:
        if name not in fields or name in given:
            raise TypeError(f"{type(self).__name__}: field {name} is unknown or given twice")
    given.update(named)
    state = self.__dict__
    for name in fields:
        if name in given:
            state[name] = given[name]
        elif hasattr(type(self), name):
            state[name] = getattr(type(self), name)
        else:
            raise TypeError(f"{type(self).__name__}: lacks field {name}")


def _eq(self: object, other: object) -> bool:
    return type(self) is type(other) and vars(self) == vars(other)


def _hash(self: object) -> int:
    return hash((type(self), *vars(self).values()))


def _repr(self: object) -> str:
    fields = ", ".join(f"{name}={value!r}" for name, value in vars(self).items())
    return f"{type(self).__name__}({fields})"


def _refuse(self: object, name: str, *_: object) -> NoReturn:
    raise AttributeError(f"{type(self).__name__}.{name}: cannot be changed, the record is frozen")


@dataclass_transform(frozen_default=True)
def frozen(cls: type[T]) -> type[T]:
    """Make a class with annotated fields a frozen record."""
    # Not by inspect.get_annotations: importing inspect is what this module avoids.
    fields = tuple(cls.__dict__.get("__annotations__", ()))  # noqa: RUF063
    for name, value in (
        ("__match_args__", fields),
        ("__init__", _init),
        ("__eq__", _eq),
        ("__hash__", _hash),
        ("__repr__", _repr),
        ("__setattr__", _refuse),
        ("__delattr__", _refuse),
    ):
        setattr(cls, name, value)
    return cls


def replace(record: T, **changes: object) -> T:
    """A copy of this record with other values in some fields."""
    return type(record)(**{**vars(record), **changes})
