# SPDX-License-Identifier: Apache-2.0
"""Which guard a packed image has: every combination of facts."""

from __future__ import annotations

import itertools

import pytest

from hpcpod.errors import ImageDigestMismatch
from hpcpod.frozen import replace
from hpcpod.images.stores.guards import MEANING, Guard, GuardFacts, choose_guard

FACTS = GuardFacts("name", measured="", expected="ab", mounts=True, dm_verity="")


@pytest.mark.parametrize(
    ("facts", "guard", "why"),
    [
        (FACTS, Guard.DM_VERITY, ""),
        (replace(FACTS, measured="ab"), Guard.FS_VERITY, ""),
        (replace(FACTS, measured="ab", mounts=False), Guard.FS_VERITY, ""),
        (replace(FACTS, mounts=False), Guard.COMPARED, "the store's file system has no fs-verity"),
        (replace(FACTS, dm_verity="no device mapper"), Guard.COMPARED, "no device mapper"),
        (replace(FACTS, expected=""), Guard.COMPARED, "packed before there were Merkle roots"),
        (replace(FACTS, expected="", measured="ab"), Guard.COMPARED, "packed before there were Merkle roots"),
    ],
)
def test_the_guard(facts: GuardFacts, guard: Guard, why: str) -> None:
    assert choose_guard(facts, "hint") == (guard, why)


def test_never_none_and_never_one_that_is_not_there() -> None:
    for measured, expected, mounts, dm in itertools.product(
        ("", "ab"), ("", "ab"), (True, False), ("", "no")
    ):
        guard, why = choose_guard(GuardFacts("n", measured, expected, mounts, dm), "hint")
        assert guard is not Guard.NOTHING and bool(why) == (guard is Guard.COMPARED)
        assert guard is not Guard.FS_VERITY or (measured and expected)
        assert guard is not Guard.DM_VERITY or (mounts and expected and not dm)


def test_another_digest_is_refused_whatever_else_there_is() -> None:
    for mounts, dm in itertools.product((True, False), ("", "no")):
        with pytest.raises(ImageDigestMismatch, match="fs-verity digest cd, expected ab") as error:
            choose_guard(GuardFacts("n", "cd", "ab", mounts, dm), "the hint")
        assert error.value.hint == "the hint"


def test_each_is_explained() -> None:
    assert set(MEANING) == set(Guard)
