# SPDX-License-Identifier: Apache-2.0
"""Sizes as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcpod.errors import UsageError
from hpcpod.sizes import parse_size

FACTORS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


@given(st.integers(0, 10**12 - 1), st.sampled_from(sorted(FACTORS)), st.sampled_from(["", "B", "i", "iB"]))
def test_sizes(number: int, prefix: str, suffix: str) -> None:
    if prefix or suffix in ("", "B"):
        expected = number * FACTORS[prefix]
        assert parse_size(f"{number}{prefix}{suffix}", "x") == expected
        assert parse_size(f"{number}{prefix}{suffix}".lower(), "x") == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "G",
        "-1",
        "+1",
        "1.5G",
        "1 G",
        "1GG",
        "1iG",
        "1BB",
        "0x10",
        "1_0",
        "\u0661",
        "1i",
        "9" * 13,
        "1E",
        "1\n",
    ],
)
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(UsageError, match="not a size"):
        parse_size(text, "option --x")
