# SPDX-License-Identifier: Apache-2.0
"""Numbers and lists in schedulers' environment variables, read strictly."""

from __future__ import annotations

from collections.abc import Mapping

from hpcpod.errors import UsageError

LARGEST = 0xFFFFFFFF
"""Slurm keeps ids and counts in 32 bits."""


def malformed(name: str, value: str, expected: str) -> UsageError:
    """The error for a variable whose value makes no sense; the value is escaped and shortened."""
    shown = ascii(value if len(value) <= 60 else value[:57] + "...")
    return UsageError(
        f"environment variable {name}: got {shown}, expected {expected}",
        hint=f"unset {name}, or start hpcpod with srun; the scheduler sets this variable",
    )


def parse_number(text: str) -> int | None:
    """The decimal number that text spells in ASCII digits, at most 32 bits; else None."""
    if not (text.isascii() and text.isdigit()) or len(text) > 10:
        return None
    value = int(text)
    return value if value <= LARGEST else None


def number(environment: Mapping[str, str], name: str) -> int | None:
    """Value of the variable, None where it is unset.  Raises UsageError where it is no number."""
    text = environment.get(name)
    if text is None:
        return None
    value = parse_number(text)
    if value is None:
        raise malformed(name, text, "a number")
    return value


def first_number(environment: Mapping[str, str], names: tuple[str, ...]) -> tuple[str, int] | None:
    """The first of the variables that is set, with its value.  Raises UsageError as :func:`number`."""
    for name in names:
        value = number(environment, name)
        if value is not None:
            return name, value
    return None


def tasks_on_node(text: str, index: int) -> int | None:
    """Tasks of node `index` in Slurm's compressed list, ``2(x3),1``; None where index is past its end.

    sbatch(1), SLURM_TASKS_PER_NODE.  Raises ValueError where the list is malformed.
    """
    result: int | None = None
    seen = 0
    for part in text.split(","):
        count_text, bracket, rest = part.partition("(x")
        count = parse_number(count_text)
        times = 1 if not bracket else parse_number(rest[:-1]) if rest.endswith(")") else None
        if count is None or not times:
            raise ValueError(part)
        if result is None and index < seen + times:
            result = count
        seen += times
    return result
