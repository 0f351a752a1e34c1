# SPDX-License-Identifier: Apache-2.0
"""Who prepares, who waits, who only enters; and the table that is made of it."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from tests.cluster.conftest import Site

pytestmark = pytest.mark.needs("root", "slurm", "native", "umoci", "mmdebstrap")

WITHOUT_PYTHON = {"created", "waited", "found"}


def _start_words(image: str) -> str:
    return f"srun hpcpod run --mpi=none {image} -- sleep 0.2"


def test_the_second_step_starts_no_python(site: Site, warm_image: str) -> None:
    start = site.script(f"{_start_words(warm_image)}; {_start_words(warm_image)}")
    assert start.status == 0, start.stderr
    ranks = [event for event in start.of("rank") if event["step"] == "1"]
    assert len(ranks) == 4
    assert {event["how"] for event in ranks} <= WITHOUT_PYTHON
    prepared = [event for event in start.of("prepare") if event["step"] == "1"]
    assert {phase["name"] for event in prepared for phase in event["phases"]} <= {"create"}


def test_one_rank_of_a_node_prepares(site: Site, warm_image: str) -> None:
    """--env makes a request that no node has a plan for."""
    start = site.script(f"srun hpcpod run --mpi=none --env=NEW=$SLURM_JOB_ID {warm_image} -- sleep 0.2")
    assert start.status == 0, start.stderr
    for node in ("n0", "n1"):
        how = Counter(event["how"] for event in start.of("rank") if event["node"] == node)
        assert how["prepared"] == 1
        assert sum(how.values()) == 2
        prepared = [event for event in start.of("prepare") if event["node"] == node]
        assert [phase["name"] for event in prepared for phase in event["phases"]][-1:] == ["create"]


def test_stamps_of_a_rank_are_in_order(site: Site, warm_image: str) -> None:
    start = site.script(_start_words(warm_image))
    for event in start.of("rank"):
        stamps = [event[name] for name in ("start_ns", "found_ns", "entered_ns", "exec_ns")]
        assert stamps == sorted(stamps)
        assert (event["launcher"], event["scope"]) == ("slurm", f"slurm-{event['job']}.{event['step']}")
        assert stamps[-1] - stamps[0] < 60e9


def test_the_report_merges_two_nodes(site: Site, warm_image: str) -> None:
    start = site.script(
        f"{_start_words(warm_image)}; "
        "srun -N2 -n2 hpcpod report --raw $SLURM_JOB_ID.0 > events; "
        "hpcpod report - < events; hpcpod report --json - < events > figures; "
        "cat figures >&2; rm events figures"
    )
    assert start.status == 0, start.stderr
    assert "4 ranks on 2 nodes" in start.stdout
    assert "start to exec" in start.stdout
    assert json.loads(start.stderr)
