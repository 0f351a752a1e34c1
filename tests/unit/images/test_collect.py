# SPDX-License-Identifier: Apache-2.0
"""What is collected: the least recently used first, nothing that is kept, no more than needed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcpod.images.stores.collect import Candidate, quota_bytes, select
from hpcpod.images.stores.store import StoredImage
from hpcpod.model import Form
from hpcpod.settings import Quota


def stored(number: int, disk: int, form: Form = Form.DIRECTORY) -> StoredImage:
    return StoredImage(f"sha256:{number:064x}", "oci:x", "linux/amd64", disk, 1, 0, 0, form.value, disk=disk)


def test_the_least_recently_used_go_first() -> None:
    images = [stored(number, 10) for number in range(4)]
    candidates = [
        Candidate(image, used) for image, used in zip(images, (40.0, 10.0, 30.0, 20.0), strict=True)
    ]
    assert select(candidates, 15) == [images[1], images[3]]
    assert select(candidates, 10) == [images[1]]
    assert select(candidates, 0) == select(candidates, -5) == []
    assert select(candidates, 1000) == [images[1], images[3], images[2], images[0]]


def test_what_is_kept_stays() -> None:
    old, new = stored(1, 10), stored(2, 10)
    assert select([Candidate(old, 1, "pinned"), Candidate(new, 2)], 20) == [new]


CANDIDATES = st.lists(
    st.tuples(
        st.integers(0, 50), st.floats(0, 1e9), st.sampled_from(["", "", "pinned", "process 7 runs in it"])
    ),
    max_size=12,
).map(lambda rows: [Candidate(stored(n, disk), used, kept) for n, (disk, used, kept) in enumerate(rows)])


@given(CANDIDATES, st.integers(-10, 400))
def test_any_choice(candidates: list[Candidate], excess: int) -> None:
    by_image = {candidate.image: candidate for candidate in candidates}
    chosen = [by_image[image] for image in select(candidates, excess)]
    assert not any(candidate.kept for candidate in chosen)
    assert [candidate.used for candidate in chosen] == sorted(candidate.used for candidate in chosen)
    # Nobody who stays, and might go, was used before one who goes.
    free = [candidate for candidate in candidates if not candidate.kept and candidate not in chosen]
    assert all(one.used <= other.used for one in chosen for other in free)
    # It stops as soon as enough has gone, and not before, unless nothing is left.
    gone = sum(candidate.image.disk for candidate in chosen)
    assert not chosen or gone - chosen[-1].image.disk < excess
    assert gone >= excess or not free


@pytest.mark.parametrize(
    ("quota", "expected"),
    [(Quota(), None), (Quota(bytes=7), 7), (Quota(percent=40), 400), (Quota(percent=100), 1000)],
)
def test_quotas(quota: Quota, expected: int | None) -> None:
    assert quota_bytes(quota, 1000) == expected


@given(st.integers(1, 100), st.integers(0, 2**60))
def test_a_percentage_is_never_more_than_the_file_system(percent: int, filesystem: int) -> None:
    found = quota_bytes(Quota(percent=percent), filesystem)
    assert found is not None and 0 <= found <= filesystem
