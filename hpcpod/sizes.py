# SPDX-License-Identifier: Apache-2.0
"""Sizes as people write them: on the command line and in hpcpod.toml.  Pure."""

from __future__ import annotations

from hpcpod.errors import UsageError

_DIGITS_MAX = 12
_PREFIXES = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_UNITS = {
    prefix + suffix: factor
    for prefix, factor in _PREFIXES.items()
    for suffix in (("", "b", "i", "ib") if prefix else ("", "b"))
}


def is_number(text: str) -> bool:
    """Whether these are decimal digits, not too many for the kernel."""
    return text.isascii() and text.isdigit() and len(text) <= _DIGITS_MAX


def parse_size(text: str, what: str) -> int:
    """Bytes in a size such as 64M, 2g or 1GiB (always powers of 1024).  Raises UsageError."""
    number = text.rstrip("kKmMgGtTiIbB")
    factor = _UNITS.get(text[len(number) :].lower())
    if factor is None or not is_number(number):
        raise UsageError(f"{what} {text}: not a size", hint="a number with K, M, G or T, such as 512M")
    return int(number) * factor
