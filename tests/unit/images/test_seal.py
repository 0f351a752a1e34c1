# SPDX-License-Identifier: Apache-2.0
"""Sealed documents: no flipped bit is believed; older documents are."""

from __future__ import annotations

import json

import pytest

from hpcpod.images.stores.seal import digest_of, opened, sealed
from hpcpod.images.stores.store import StoredImage, stored_from

IMAGE = StoredImage(
    digest="sha256:" + "0123456789abcdef" * 4,
    reference="oci:/images/ä",
    platform="linux/amd64",
    size=123,
    entries=4,
    skipped=0,
    when=1_700_000_000,
    form="squashfs",
    why="asked for",
    disk=4096,
    seconds=0.25,
    root="ab" * 32,
    length=4096,
    documents="cd" * 32,
)


def test_what_was_sealed() -> None:
    assert stored_from(sealed(vars(IMAGE))) == IMAGE


def test_no_flipped_bit_is_believed() -> None:
    raw = sealed(vars(IMAGE))
    for bit in range(len(raw) * 8):
        changed = bytearray(raw)
        changed[bit // 8] ^= 1 << bit % 8
        try:
            assert stored_from(bytes(changed)) == IMAGE, bit  # what only JSON's layout shows
        except (ValueError, TypeError):
            continue


@pytest.mark.parametrize("size", range(0, 500, 7))
def test_a_document_that_was_cut(size: int) -> None:
    with pytest.raises(ValueError):
        stored_from(sealed(vars(IMAGE))[:size])


def test_a_document_from_before_there_were_seals() -> None:
    fields = {
        name: value for name, value in vars(IMAGE).items() if name not in ("root", "length", "documents")
    }
    assert stored_from(json.dumps({**fields, "sha256": "ef" * 32}).encode()).sha256 == "ef" * 32
    with pytest.raises(ValueError, match="nothing to compare"):
        stored_from(json.dumps(fields).encode())
    fields["form"] = "dir"
    assert stored_from(json.dumps(fields).encode()).form == "dir"


@pytest.mark.parametrize("kept", ["root", "documents"])
def test_the_seal_cannot_be_left_out(kept: str) -> None:
    fields = {
        name: value for name, value in vars(IMAGE).items() if name not in ("root", "length", "documents")
    }
    raw = json.dumps({**fields, "sha256": "ef" * 32, kept: "ab" * 32}).encode()
    with pytest.raises(ValueError, match="not what was written"):
        opened(raw)


@pytest.mark.parametrize(
    "fields",
    [{"length": 0}, {"length": -1}, {"length": 1 << 63}, {"root": "AB" * 32}, {"root": ""}, {"length": "1"}],
)
def test_nonsense_with_a_good_seal(fields: dict[str, object]) -> None:
    """Who unpacks into the site's store may write what it likes; root reads it."""
    with pytest.raises(ValueError, match=r"length|compare|another type"):
        stored_from(sealed({**vars(IMAGE), **fields}))


def test_where_documents_end_counts() -> None:
    assert digest_of(b"ab", b"c") != digest_of(b"a", b"bc") != digest_of(b"abc")
