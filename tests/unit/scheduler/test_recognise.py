# SPDX-License-Identifier: Apache-2.0
"""Schedulers' environments, captured from real ones, and what must not be accepted."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcpod.errors import UsageError
from hpcpod.model import PmiKind
from hpcpod.scheduler_plugins import recognise
from hpcpod.scheduler_plugins.numbers import parse_number, tasks_on_node

GOLDENS = Path(__file__).parent / "goldens"
NAMES = sorted(path.stem for path in GOLDENS.glob("*.env"))


def environment(name: str) -> dict[str, str]:
    lines = (GOLDENS / f"{name}.env").read_text().splitlines()
    return {key: value for key, _, value in (line.partition("=") for line in lines)}


@pytest.mark.parametrize("name", NAMES)
def test_a_captured_environment_is_read_as_it_was(name: str) -> None:
    expected = json.loads((GOLDENS / f"{name}.json").read_text())
    found = recognise(environment(name), cwd="/home/alice", node=expected.pop("uname"))
    assert expected.pop("served") == sorted(kind.value for kind in found.served)
    assert expected == {key: getattr(found, key) for key in expected}
    assert found.cwd == "/home/alice"


def test_there_are_goldens_of_all_kinds() -> None:
    kinds = {name.rpartition("-rank")[0] or name for name in NAMES}
    assert {"srun-none", "srun-pmi2", "srun-pmix", "sbatch-body", "salloc", "mpiexec-hydra"} <= kinds


def test_nothing_at_all_is_a_lone_run() -> None:
    found = recognise({}, cwd="/", node="laptop")
    assert (found.launcher, found.scope, found.node) == ("local", "", "laptop")
    assert (found.rank, found.ntasks, found.local_ntasks, found.served) == (0, 1, 1, frozenset())


@pytest.mark.parametrize("step", ["4294967291", "4294967292", "4294967290", "4294967293", "batch", "extern"])
def test_reserved_step_ids_are_no_steps(step: str) -> None:
    changed = environment("srun-none-rank3") | {"SLURM_STEP_ID": step}
    assert recognise(changed, cwd="/", node="n1").launcher == "local"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SLURM_JOB_ID", "../../x"),
        ("SLURM_STEP_ID", "0/.."),
        ("SLURM_PROCID", "-1"),
        ("SLURM_PROCID", "٣"),
        ("SLURM_PROCID", "4"),
        ("SLURM_PROCID", "99999999999999999999"),
        ("SLURM_LOCALID", ""),
        ("SLURM_LOCALID", "2"),
        ("SLURM_NODEID", "2"),
        ("SLURM_STEP_NUM_TASKS", "many\x1b[31m"),
        ("SLURM_STEP_TASKS_PER_NODE", "2(x"),
        ("SLURM_STEP_TASKS_PER_NODE", "2,,1"),
        ("PMI_FD", "three"),
    ],
)
def test_a_malformed_value_is_a_usage_error_that_names_the_variable(name: str, value: str) -> None:
    changed = environment("srun-none-rank3") | {name: value}
    with pytest.raises(UsageError, match=name) as caught:
        recognise(changed, cwd="/", node="n1")
    assert caught.value.message.isprintable()


@pytest.mark.parametrize("name", ["SLURM_PROCID", "SLURM_LOCALID"])
def test_a_missing_variable_is_named(name: str) -> None:
    changed = environment("srun-none-rank3")
    del changed[name]
    with pytest.raises(UsageError, match=name):
        recognise(changed, cwd="/", node="n1")


def test_without_the_node_list_only_the_ranks_up_to_this_one_are_known() -> None:
    changed = environment("srun-none-rank3")
    del changed["SLURM_STEP_TASKS_PER_NODE"]
    assert recognise(changed, cwd="/", node="n1").local_ntasks == 2


def test_a_heterogeneous_job_numbers_its_nodes_through() -> None:
    changed = environment("srun-none-rank3") | {
        "SLURM_HET_SIZE": "2",
        "SLURM_NODEID": "3",
        "SLURM_PROCID": "5",
    }
    assert recognise(changed, cwd="/", node="n1").rank == 5


@pytest.mark.parametrize("missing", ["PMIX_RANK", "PMIX_NAMESPACE"])
def test_half_a_pmix_is_none(missing: str) -> None:
    changed = environment("srun-pmix-rank3")
    assert recognise(changed, cwd="/", node="n1").served == {PmiKind.PMIX}
    del changed[missing]
    assert recognise(changed, cwd="/", node="n1").served == frozenset()


@given(st.lists(st.tuples(st.integers(1, 300), st.integers(1, 5)), min_size=1, max_size=20))
def test_the_compressed_list_counts_like_the_plain_one(runs: list[tuple[int, int]]) -> None:
    text = ",".join(f"{count}(x{times})" if times > 1 else str(count) for count, times in runs)
    plain = [count for count, times in runs for _ in range(times)]
    assert [tasks_on_node(text, index) for index in range(len(plain) + 1)] == [*plain, None]


@given(st.text(max_size=20))
def test_any_text_is_a_list_or_an_error(text: str) -> None:
    with contextlib.suppress(ValueError):
        tasks_on_node(text, 0)


@given(st.dictionaries(st.sampled_from(sorted(environment("mpiexec-hydra-rank3"))), st.text(max_size=12)))
def test_any_environment_is_read_or_refused(changes: dict[str, str]) -> None:
    try:
        found = recognise(environment("mpiexec-hydra-rank3") | changes, cwd="/", node="n")
    except UsageError:
        return
    assert "/" not in found.scope


@given(st.text(max_size=12))
def test_numbers_are_ascii_digits_of_32_bits(text: str) -> None:
    value = parse_number(text)
    assert value is None or (0 <= value < 2**32 and text.isascii())
