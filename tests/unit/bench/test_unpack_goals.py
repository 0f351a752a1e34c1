# SPDX-License-Identifier: Apache-2.0
"""The goals of unpacking, from rows whose times are known."""

from __future__ import annotations

import pytest

from bench import goals
from bench.result import Result, Row

PEERS = {"umoci-gzip": 3000, "podman-gzip": 3000, "podman-zstd": 3000}
OURS = {"hpcpod-gzip": 1000, "hpcpod-zstd": 1000}
FLOORS = {"floor-gzip": 800, "floor-zstd": 800}


def row(key: str, time: int) -> Row:
    kind = "floor" if key.startswith("floor") else "unpack"
    return Row(key, key, kind, "", "", {"all": [time]}, {"all": [time]}, {"all": [50 << 10]})


def met(times: dict[str, int]) -> list[str]:
    parts = {"image: memory": [row(key, time) for key, time in times.items()]}
    lines = goals.lines({"unpack": Result("unpack", {}, {}, [], parts, [])})
    return [line[2] for line in lines if line[0].startswith("unpacking")]


def test_goals_are_met() -> None:
    assert met(PEERS | OURS | FLOORS) == ["yes", "yes"]


@pytest.mark.parametrize("key", PEERS)
def test_each_peer_counts(key: str) -> None:
    assert met(PEERS | OURS | FLOORS | {key: 2900})[0] == "**no**"


@pytest.mark.parametrize("key", FLOORS)
def test_each_floor_counts(key: str) -> None:
    assert met(PEERS | OURS | FLOORS | {key: 700})[1] == "**no**"


@pytest.mark.parametrize("key", [*PEERS, *OURS])
def test_who_is_not_measured_shows(key: str) -> None:
    times = {other: time for other, time in (PEERS | OURS | FLOORS).items() if other != key}
    assert met(times)[0] == "not measured"


@pytest.mark.parametrize("key", FLOORS)
def test_a_floor_that_is_not_measured_shows(key: str) -> None:
    times = {other: time for other, time in (PEERS | OURS | FLOORS).items() if other != key}
    assert met(times)[1] == "not measured"


@pytest.mark.parametrize(
    ("ended", "flushed", "expected"),
    [(3000, 3000, ["yes", "yes"]), (2900, 3000, ["yes", "**no**"]), (3000, 2900, ["**no**", "yes"])],
)
def test_on_a_disk_both_times_count(ended: int, flushed: int, expected: list[str]) -> None:
    """Until the tree is on the disk, and until the command ends."""
    walls = {key: {"all": [1000], "flushed": [1000]} for key in OURS}
    walls |= {key: {"all": [ended], "flushed": [flushed]} for key in PEERS}
    rows = [
        Row(key, key, "unpack", "", "", times, {"all": [1000]}, {"all": [50 << 10]})
        for key, times in walls.items()
    ]
    rows += [Row(key, key, "floor", "", "", {"all": [800]}, {"all": [800]}) for key in FLOORS]
    every = goals.lines({"unpack": Result("unpack", {}, {}, [], {"image: disk (ext4)": rows}, [])})
    found = [line for line in every if line[0].startswith("unpacking")]
    assert [line[2] for line in found][:2] == expected
    assert "until the tree is on the disk" in found[0][0]
    assert "until the command ends" in found[1][0]
