# SPDX-License-Identifier: Apache-2.0
"""JSON as RFC 8259 means it, without what parsers disagree on.

Two programs that read one document differently can be made to run different images from one digest, so
duplicate keys, NaN, and numbers of absurd length are refused.  Go's encoding/json takes a field by its name
in any case: objects with fields may not have two keys that differ in case alone.  Labels, annotations and
the like are maps, whose keys Go keeps apart.  Fields are taken out by functions that check their types.
"""

from __future__ import annotations

import json

from hpcpod.errors import ImageInvalid, ImageLimitExceeded
from hpcpod.images.limits import Limits
from hpcpod.log import shown

TYPE_CHECKING = False  # importing typing would be a sixth of a preparation's start (docs/adr/0005)
if TYPE_CHECKING:
    from typing import Any, NoReturn

INT_MAX = (1 << 63) - 1


def parse_object(raw: bytes, what: str, limits: Limits) -> dict[str, Any]:
    """The JSON object in raw; `what` names the document in errors.  Raises ImageInvalid."""
    parsed = _parse(raw, what, limits)
    if not isinstance(parsed, dict):
        raise ImageInvalid(f"{what}: a JSON {type(parsed).__name__}, not an object")
    return parsed


def parse_objects(raw: bytes, what: str, limit: str, limits: Limits) -> tuple[Fields, ...]:
    """The objects of the JSON list in raw; no more than the limit of that name.  Raises ImageInvalid."""
    parsed = _parse(raw, what, limits)
    if not isinstance(parsed, list):
        raise ImageInvalid(f"{what}: a JSON {type(parsed).__name__}, not a list")
    return Fields({"list": parsed}, what).children("list", limit, getattr(limits, limit))


def _parse(raw: bytes, what: str, limits: Limits) -> object:
    if len(raw) > limits.json_bytes:
        raise ImageLimitExceeded(f"{what}: {len(raw)} bytes of JSON, limit json_bytes {limits.json_bytes}")
    try:
        parsed = json.loads(
            raw.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_constant=_refuse_constant,
            parse_int=lambda digits: _short_int(digits, what, limits),
        )
    except UnicodeDecodeError as error:
        raise ImageInvalid(f"{what}: not UTF-8 at byte {error.start}") from None
    except RecursionError:
        raise ImageLimitExceeded(f"{what}: nested deeper than json_depth {limits.json_depth}") from None
    except ValueError as error:
        raise ImageInvalid(f"{what}: not JSON: {shown(str(error))}") from None
    if not _within_depth(parsed, limits.json_depth):
        raise ImageLimitExceeded(f"{what}: nested deeper than json_depth {limits.json_depth}")
    return parsed


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"key {key!r} occurs twice")
        found[key] = value
    return found


def _refuse_capitals(values: dict[str, Any], what: str) -> NoReturn:
    first: dict[str, str] = {}
    for key in values:
        other = first.setdefault(key.casefold(), key)
        if other != key:
            break
    raise ImageInvalid(f"{what}: fields {shown(other)} and {shown(key)} differ in capitals alone")


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a number")


def _short_int(digits: str, what: str, limits: Limits) -> int:
    count = len(digits.lstrip("-"))
    if count > limits.json_digits:
        raise ImageLimitExceeded(
            f"{what}: a number of {count} digits, limit json_digits {limits.json_digits}"
        )
    return int(digits)


def _within_depth(value: object, depth: int) -> bool:
    if isinstance(value, dict):
        return depth > 0 and all(_within_depth(child, depth - 1) for child in value.values())
    if isinstance(value, list):
        return depth > 0 and all(_within_depth(child, depth - 1) for child in value)
    return True


class Fields:
    """Typed look-ups in one JSON object.  Null counts as absent, since Go programs write it so.

    Raises ImageInvalid, when it is made, for keys that differ in case alone.
    """

    def __init__(self, values: dict[str, Any], what: str) -> None:
        if len({key.casefold() for key in values}) != len(values):
            _refuse_capitals(values, what)
        self._values = values
        self._what = what

    @property
    def what(self) -> str:
        """How errors name this object."""
        return self._what

    def has(self, key: str) -> bool:
        """Whether the key is there and not null."""
        return self._values.get(key) is not None

    def fail(self, key: str, expected: str) -> NoReturn:
        """Raise ImageInvalid for a field."""
        raise ImageInvalid(f"{self._what}: field {shown(key)}: expected {expected}")

    def text(self, key: str, default: str | None = None) -> str:
        """A string that can be encoded and has no NUL; required when there is no default."""
        value = self._values.get(key)
        if value is None and default is not None:
            return default
        return self._checked_text(key, value)

    def _checked_text(self, key: str, value: object) -> str:
        if not isinstance(value, str) or "\0" in value:
            self.fail(key, "a string without NUL")
        try:
            value.encode()
        except UnicodeEncodeError:
            self.fail(key, "a string of Unicode characters (no lone surrogate)")
        return value

    def number(self, key: str) -> int:
        """A required integer from 0 to 2^63-1."""
        value = self._values.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= INT_MAX:
            self.fail(key, "an integer from 0 to 2^63-1")
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of strings; empty when absent."""
        value = self._values.get(key)
        if value is None:
            return ()
        if not isinstance(value, list):
            self.fail(key, "a list of strings")
        return tuple(self._checked_text(key, item) for item in value)

    def mapping(self, key: str) -> tuple[tuple[str, str], ...]:
        """An object whose values are strings; empty when absent."""
        value = self._values.get(key)
        if value is None:
            return ()
        if not isinstance(value, dict):
            self.fail(key, "an object of strings")
        return tuple((self._checked_text(key, k), self._checked_text(key, v)) for k, v in value.items())

    def keys(self, key: str) -> tuple[str, ...]:
        """The keys of an object; empty when absent."""
        value = self._values.get(key)
        if value is None:
            return ()
        if not isinstance(value, dict):
            self.fail(key, "an object")
        return tuple(self._checked_text(key, k) for k in value)

    def child(self, key: str) -> Fields:
        """A required object."""
        value = self._values.get(key)
        if not isinstance(value, dict):
            self.fail(key, "an object")
        return Fields(value, f"{self._what}: {key}")

    def children(self, key: str, limit: str, longest: int) -> tuple[Fields, ...]:
        """A required list of at most `longest` objects, which is the limit of that name."""
        value = self._values.get(key)
        if not isinstance(value, list):
            self.fail(key, "a list of objects")
        if len(value) > longest:
            raise ImageLimitExceeded(f"{self._what}: {len(value)} {key}, limit {limit} {longest}")
        found = []
        for number, item in enumerate(value):
            if not isinstance(item, dict):
                self.fail(key, "a list of objects")
            found.append(Fields(item, f"{self._what}: {key}[{number}]"))
        return tuple(found)
