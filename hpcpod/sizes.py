# SPDX-License-Identifier: Apache-2.0
"""Sizes as people write them: on the command line and in hpcpod.toml.  Pure."""

from __future__ import annotations

from hpcpod.errors import UsageError

_DIGITS_MAX = 12
BARE_LEAST = 4096
"""Bytes that a size without a unit must have, to be believed."""
LAYER_LEAST = QUOTA_LEAST = 1 << 20
"""Bytes of the smallest file system in memory, and of the smallest quota of a store."""
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


def parse_bytes(text: str, what: str, least: int = 1) -> int:
    """The size in text, where it is one of bytes and not a count.  Raises UsageError.

    least: bytes; a smaller size cannot be meant.  A few bytes without a unit are refused: whoever writes
    ``2`` means 2G, and would read of a full disk much later.  what: ends in the word that takes the size.
    """
    found = parse_size(text, what)
    if 0 < found < BARE_LEAST and is_number(text):
        name = what.rpartition(" ")[2]
        raise UsageError(
            f"{what} {text}: {found} bytes, a unit is missing",
            hint=f"{name} takes a number with K, M, G or T (powers of 1024): {text}G, {text}M",
        )
    if found < least:
        expected = f"less than {least >> 20}M" if found and least > 1 else "not a positive size"
        raise UsageError(
            f"{what} {text}: {expected}", hint="a number with K, M, G or T (powers of 1024), such as 512M"
        )
    return found
