# SPDX-License-Identifier: Apache-2.0
"""Which form an image takes, and the names of entries: every combination of what a node may have."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcpod.errors import StoreUnusable, UsageError
from hpcpod.frozen import replace
from hpcpod.images.stores.forms import (
    CHOICES,
    FEW_INODES,
    FormFacts,
    choose,
    entry_name,
    form_facts_text,
    obstacle,
    parse_entry,
    parse_form,
)
from hpcpod.model import Form

ALL = FormFacts(
    site=True,
    erofs=True,
    squashfs=True,
    mkfs_erofs="/usr/bin/mkfs.erofs",
    mksquashfs="/usr/bin/mksquashfs",
    squashfuse="/usr/bin/squashfuse_ll",
)
USER = replace(ALL, site=False)
NOTHING = FormFacts(site=True, erofs=False, squashfs=False, mkfs_erofs="", mksquashfs="", squashfuse="")


@pytest.mark.parametrize(
    ("facts", "form", "why"),
    [
        (ALL, Form.EROFS, "one mount"),
        (replace(ALL, squashfuse="", shared=True, inodes=5), Form.EROFS, "one mount"),
        (replace(ALL, erofs=False), Form.SQUASHFS, "one mount"),
        (replace(ALL, mkfs_erofs="", squashfuse=""), Form.SQUASHFS, "one mount"),
        (replace(ALL, erofs=False, squashfs=False), Form.DIRECTORY, "no erofs; this kernel has no squashfs"),
        (replace(ALL, mkfs_erofs="", mksquashfs=""), Form.DIRECTORY, "mksquashfs is not installed"),
        (NOTHING, Form.DIRECTORY, "no erofs; mksquashfs is not installed"),
        (USER, Form.DIRECTORY, "fastest"),
        (replace(USER, shared=True), Form.SQUASHFS, "network"),
        (replace(USER, shared=True, squashfs=False, erofs=False), Form.SQUASHFS, "network"),
        (replace(USER, shared=True, squashfuse=""), Form.DIRECTORY, "fastest"),
        (replace(USER, shared=True, mksquashfs=""), Form.DIRECTORY, "fastest"),
        (replace(USER, inodes=FEW_INODES - 1), Form.SQUASHFS, f"{FEW_INODES - 1} inodes"),
        (replace(USER, inodes=FEW_INODES), Form.DIRECTORY, "fastest"),
        (replace(NOTHING, site=False, shared=True), Form.DIRECTORY, "fastest"),
    ],
)
def test_the_choice(facts: FormFacts, form: Form, why: str) -> None:
    assert choose(None, facts)[0] is form
    assert why in choose(None, facts)[1]


@pytest.mark.parametrize(
    ("form", "facts", "reason"),
    [
        (Form.EROFS, USER, "image mount"),
        (Form.EROFS, replace(ALL, erofs=False), "this kernel has no erofs"),
        (Form.EROFS, replace(ALL, mkfs_erofs=""), "mkfs.erofs is not installed (erofs-utils)"),
        (Form.SQUASHFS, replace(ALL, squashfs=False), "this kernel has no squashfs"),
        (Form.SQUASHFS, replace(ALL, mksquashfs=""), "mksquashfs is not installed (squashfs-tools)"),
        (Form.SQUASHFS, replace(USER, squashfuse=""), "squashfuse_ll is not installed (squashfuse)"),
    ],
)
def test_what_stands_against_a_form(form: Form, facts: FormFacts, reason: str) -> None:
    assert reason in obstacle(form, facts)
    with pytest.raises(StoreUnusable) as caught:
        choose(form, facts)
    assert caught.value.message == f"rootfs {form.value}: {obstacle(form, facts)}"
    # What the site prefers is no order: there is another choice.
    assert choose(None, facts, form)[0] is choose(None, facts)[0]


def worlds() -> list[FormFacts]:
    flags = itertools.product([False, True], repeat=7)
    return [
        FormFacts(site, erofs, squashfs, "m" * e, "m" * s, "f" * f, shared)
        for site, erofs, squashfs, e, s, f, shared in flags
    ]


def test_every_choice_can_be_made_and_used() -> None:
    for facts in worlds():
        for preferred in (None, *Form):
            assert obstacle(choose(None, facts, preferred)[0], facts) == ""
        for form in Form:
            if not obstacle(form, facts):
                assert choose(form, facts) == (form, "asked for")
                assert choose(None, facts, form)[0] is form
        assert obstacle(Form.DIRECTORY, facts) == ""
        assert form_facts_text(facts)


def test_words_for_forms() -> None:
    assert CHOICES == ("auto", "dir", "squashfs", "erofs")
    assert [parse_form(text, "x") for text in CHOICES] == [None, *Form]
    with pytest.raises(UsageError, match="option --rootfs ext4: unknown"):
        parse_form("ext4", "option --rootfs")


DIGESTS = st.one_of(
    st.text("0123456789abcdef", min_size=64, max_size=64).map("sha256:{}".format),
    st.text("0123456789abcdef", min_size=128, max_size=128).map("sha512:{}".format),
)


@given(DIGESTS, st.sampled_from(list(Form)))
def test_names_of_entries(digest: str, form: Form) -> None:
    name = entry_name(digest, form)
    assert "/" not in name and ":" not in name
    assert parse_entry(name) == (digest, form)


HEX = "0123456789abcdef" * 4


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "sha256",
        f"sha256:{HEX}",
        f"sha256-{HEX[1:]}",
        f"sha256-{HEX}0",
        f"sha256-{HEX.upper()}",
        f"sha256-{HEX}.",
        f"sha256-{HEX}.dir",
        f"sha256-{HEX}.ext4",
        f"sha256-{HEX}.squashfs.erofs",
        f"sha256-{HEX}.squashfs/x",
        f"sha256-{HEX}\n",
        f"md5-{HEX[:32]}",
        f"sha256-{HEX[:63]}/",
    ],
)
def test_what_is_no_name_of_an_entry(name: str) -> None:
    assert parse_entry(name) is None


@given(st.text(max_size=90))
def test_any_text_is_the_name_of_one_entry_or_none(text: str) -> None:
    found = parse_entry(text)
    assert found is None or entry_name(*found) == text
