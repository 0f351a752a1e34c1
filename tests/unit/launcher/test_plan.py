# SPDX-License-Identifier: Apache-2.0
"""Plans of whole command lines, and the sealed records that say the same.

The goldens are record text, one operation a line; ``HPCPOD_GOLDENS=write pytest tests/unit/launcher`` writes
them anew, to be read in the difference.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcpod.errors import ImageInvalid, MpiMismatch, UsageError
from hpcpod.frozen import replace
from hpcpod.launcher.record import record_bytes
from hpcpod.model import (
    Bind,
    BindFromEnv,
    EnvDefault,
    EnvKeep,
    EnvSet,
    EnvUnset,
    GeneratedFile,
    ImageConfig,
    NodePlan,
    PmiKind,
    PodPlan,
    RankPlan,
    Tmpfs,
    Tree,
)
from tests.unit.launcher import records
from tests.unit.launcher.worlds import (
    ALONE,
    FACTS,
    FILE,
    GUARD,
    IMAGE,
    INSIDE_MPICH,
    PACKED,
    ROOTFS,
    STEP,
    USER,
    plan,
)

GOLDENS = Path(__file__).parent / "goldens"

CASES: dict[str, NodePlan] = {
    "plain": plan(),
    "everything": plan(
        "-B", "/data:/d:ro", "--bind", "in:/in:optional", "--env", "A=1", "--env", "LD_LIBRARY_PATH",
        "-w", "/w", "--mpi=pmi2", "--writable-size=64M", "--no-home", "--shm-size=1G", "--preserve-fds=2",
        variables={"HPCPOD_BIND": "/site"},
    ),
    "no-filter-no-home": plan("--seccomp=none", "--no-home", seccomp=b"", user=replace(USER, home=None)),
    "slurm-step": plan(context=STEP, inside=INSIDE_MPICH),
    "local-launch": plan("-n", "4", inside=INSIDE_MPICH),
    "cwd-in-tmp": plan(context=replace(ALONE, cwd="/tmp/x")),
    "cwd-is-root": plan(context=replace(ALONE, cwd="/")),
    "packed": plan("--rootfs=squashfs", image=PACKED),
    "packed-writable": plan("--writable", image=PACKED, context=STEP),
}  # fmt: skip


def text(record: bytes) -> str:
    return "".join(" ".join([name, *map(ascii, words)]) + "\n" for name, words in records.operations(record))


@pytest.mark.parametrize("name", CASES)
def test_plans_are_what_they_were(name: str) -> None:
    golden = GOLDENS / f"{name}.txt"
    found = text(record_bytes(CASES[name], FILE if CASES[name].image == PACKED else ROOTFS))
    if os.environ.get("HPCPOD_GOLDENS") == "write":
        golden.write_text(found)
    assert found == golden.read_text()


def test_mounts_of_the_node_come_before_what_was_asked_for() -> None:
    targets = [
        mount.target
        for mount in CASES["everything"].pod.mounts
        if isinstance(mount, Bind | Tmpfs | GeneratedFile)
    ]
    assert targets.index("/dev") < targets.index("/dev/shm")
    assert targets.index("/tmp") < targets.index("/site") < targets.index("/d") < targets.index("/in")


def test_ranks_of_the_images_mpiexec_get_what_it_serves() -> None:
    with pytest.raises(MpiMismatch, match="mpiexec of the image: MPICH"):
        plan("-n", "2", "--mpi=pmix", inside=INSIDE_MPICH)
    assert plan("-n", "2", "--mpi=pmi2", inside=INSIDE_MPICH).rank.launch


def test_more_ranks_without_a_scheduler_need_an_mpiexec() -> None:
    with pytest.raises(MpiMismatch, match="has no mpiexec to start 4 ranks"):
        plan("-n", "4")


def test_an_option_that_is_wrong_for_the_plan_is_a_usage_error() -> None:
    with pytest.raises(UsageError):
        plan("--bind", "relative:target")


def test_a_nul_in_an_images_configuration_is_refused() -> None:
    bad = replace(CASES["plain"], image=replace(IMAGE, reference="oci:\0"))
    with pytest.raises(ImageInvalid, match="NUL"):
        record_bytes(bad, ROOTFS)


def test_bytes_that_are_no_text_pass_unchanged() -> None:
    path = os.fsdecode(b"/caf\xe9/\xff")
    record = record_bytes(replace(CASES["plain"], pod=PodPlan(Tree(path), None, (Bind(path, path),))), ROOTFS)
    assert b"bind\0/caf\xe9/\xff\0/caf\xe9/\xff\0\0" in record
    assert records.mounts(record) == (Bind(path, path),)


_TEXT = st.text(alphabet=st.characters(exclude_characters="\0", codec="utf-8"), max_size=8)
_MOUNTS = st.one_of(
    st.builds(Bind, _TEXT, _TEXT, read_only=st.booleans(), optional=st.booleans()),
    st.builds(BindFromEnv, _TEXT),
    st.builds(Tmpfs, _TEXT, st.integers(0, 0o7777), st.integers(0, 1 << 62)),
    st.builds(GeneratedFile, _TEXT, _TEXT),
)
_OPS = st.one_of(
    st.builds(EnvSet, _TEXT, _TEXT),
    st.builds(EnvDefault, _TEXT, _TEXT),
    st.builds(EnvUnset, _TEXT),
    st.builds(EnvKeep, _TEXT),
)
_TUPLE = st.lists(_TEXT, max_size=3).map(tuple)
_RANKS = st.builds(
    RankPlan,
    environment=st.lists(_OPS, max_size=4).map(tuple),
    workdirs=_TUPLE,
    command=_TUPLE,
    launch=_TUPLE,
    seccomp=st.binary(max_size=16),
    accepted=st.none() | st.frozensets(st.sampled_from(PmiKind)),
    preserve_fds=st.integers(0, 9),
    mpi=st.sampled_from(["auto", "pmi2"]),
)


@given(st.none() | st.integers(0, 1 << 62), st.lists(_MOUNTS, max_size=5), _RANKS)
def test_a_record_says_all_that_the_plan_says(writable: int | None, mounts: list, rank: RankPlan) -> None:
    pod = PodPlan(IMAGE.rootfs, writable, tuple(mounts))
    record = record_bytes(NodePlan(image=IMAGE, guards=(GUARD,), pod=pod, rank=rank), ROOTFS)
    assert records.mounts(record) == pod.mounts
    assert records.environment(record) == rank.environment
    assert records.guards(record) == (GUARD,)
    assert records.values(record, "writable") == (() if writable is None else (str(writable),))
    for name, value in (("workdir", rank.workdirs), ("command", rank.command), ("launch", rank.launch)):
        assert records.values(record, name) == value
    assert bytes.fromhex("".join(records.values(record, "seccomp"))) == rank.seccomp
    accepted = records.values(record, "pmi-accept") if records.values(record, "pmi-check") else None
    assert accepted == (
        None if rank.accepted is None else tuple(sorted(kind.value for kind in rank.accepted))
    )
    assert records.values(record, "keep-fds") == ((str(rank.preserve_fds),) if rank.preserve_fds else ())


def test_an_image_without_configuration_has_a_plan() -> None:
    from hpcpod.launcher.plan import make_plan
    from hpcpod.launcher.request import RunRequest

    bare = make_plan(RunRequest(), replace(IMAGE, config=ImageConfig()), FACTS)
    assert bare.rank.command == () and bare.rank.workdirs == (".", "/")
