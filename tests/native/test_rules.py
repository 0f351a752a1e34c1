# SPDX-License-Identifier: Apache-2.0
"""Rules that stand twice, in C and in Python: both must say the same."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hpcpod import config
from hpcpod.errors import HpcpodError, StoreUnusable, UsageError
from hpcpod.launcher.options import RUN_OPTIONS
from hpcpod.launcher.request import REQUEST_VARIABLES, split_words
from hpcpod.scheduler_plugins import recognise
from hpcpod.scheduler_plugins.numbers import tasks_on_node
from tests.native.conftest import NATIVE

Call = Callable[..., subprocess.CompletedProcess[bytes]]

pytestmark = pytest.mark.needs("sanitizers")

GOLDENS = Path(__file__).resolve().parent.parent / "unit" / "scheduler" / "goldens"
NAMES = sorted(path.stem for path in GOLDENS.glob("*.env"))
FEW = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


# ------------------------------------------------------------------ options


def test_the_header_has_the_rows_of_the_table(generated: Path) -> None:
    rows = re.findall(r'\{"([a-z-]+)", \'(\\0|.)\', ([01])\}', (generated / "options.h").read_text())
    table = [(o.name, o.short or "\\0", str(int(bool(o.metavar)))) for o in RUN_OPTIONS]
    assert rows == table


_OPTION_WORDS = st.sampled_from(
    [f"--{o.name}" for o in RUN_OPTIONS]
    + [f"--{o.name}=v" for o in RUN_OPTIONS]
    + [f"-{o.short}" for o in RUN_OPTIONS if o.short]
    + [f"-{o.short}v" for o in RUN_OPTIONS if o.short]
    + ["-", "--", "-z", "--nothing", "--bin", "value", "", "--bind=", "-=", "--=", "---", "oci:x"]
)


@FEW
@given(st.lists(_OPTION_WORDS, max_size=6))
def test_both_split_a_command_line_at_the_same_word(call: Call, words: list[str]) -> None:
    found = call("request", *words).stdout.decode().rstrip("\n")
    if found == "python":  # Python says what is wrong with it
        return
    count, reference = found.split(" ")[:2]
    try:
        _, rest = split_words(words)
    except UsageError:
        return  # the front leaves the meaning of options to Python
    assert (int(count), reference) == (len(words) - len(rest), rest[0])


@pytest.mark.parametrize(
    "words",
    [
        [],
        [""],
        ["--"],
        ["-"],
        ["--bind"],
        ["-B"],
        ["--none", "x"],
        ["x", "-v"],
        ["x", "--help"],
        ["--help"],
        ["-"],
    ],
)
def test_what_is_not_plainly_right_is_left_to_python(call: Call, words: list[str]) -> None:
    assert call("request", *words).stdout == b"python\n"


def test_the_program_is_what_follows_the_reference(call: Call) -> None:
    words = ["-n4", "-B", "/a:/b", "--env=A=b", "ref", "--", "-prog", "--bind", ""]
    fields = call("request", *words).stdout.decode().rstrip("\n").split(" ")
    assert fields[:2] == ["4", "ref"] and fields[3:] == ["-prog", "--bind", ""]


# ------------------------------------------------------------------ the name of a plan


def plan_name(call: Call, *words: str, env: dict[str, str] | None = None, **more: object) -> str:
    return call("request", *words, env=env, **more).stdout.decode().split(" ")[2].strip()


def test_both_know_the_variables_that_a_plan_depends_on() -> None:
    text = (NATIVE / "request.c").read_text()
    listed = re.search(r"request_variables\[\] = \{(.*?)\};", text, re.DOTALL)
    assert listed
    assert tuple(re.findall(r'"([A-Z_]+)"', listed.group(1))) == REQUEST_VARIABLES


@pytest.mark.parametrize("name", REQUEST_VARIABLES)
def test_each_of_them_changes_the_plans_name(call: Call, name: str) -> None:
    names = {plan_name(call, "ref", env=env) for env in ({}, {name: ""}, {name: "a"}, {name: "b"})}
    assert len(names) == 4


def test_the_plans_name_depends_on_options_reference_and_directory_but_not_on_the_program(
    call: Call, tmp_path: Path
) -> None:
    base = plan_name(call, "ref", "a")
    assert plan_name(call, "ref", "b", "c") == base
    others = [
        plan_name(call, "reg"),
        plan_name(call, "--writable", "ref"),
        plan_name(call, "--bind", "/a", "ref"),
        plan_name(call, "--bind=/a", "ref"),
        plan_name(call, "ref", cwd=tmp_path),
    ]
    assert len({base, *others}) == 6


def test_words_do_not_run_together_in_the_plans_name(call: Call) -> None:
    assert plan_name(call, "--env", "ab", "c") != plan_name(call, "--env", "a", "bc")


@pytest.mark.needs("root")
def test_groups_count_many_as_they_may_be(call: Call) -> None:
    many = [*range(20000, 20100)]
    names = {plan_name(call, "ref", extra_groups=groups) for groups in ([], [20000], many, [*many[:-1], 7])}
    assert len(names) == 4


def test_thousands_of_options_count(call: Call) -> None:
    many = [word for n in range(5000) for word in ("--env", f"A{n}=1")]
    assert plan_name(call, *many, "ref") != plan_name(call, *many[:-1], "A=2", "ref")


# ------------------------------------------------------------------ steps


def golden(name: str) -> tuple[dict[str, str], dict[str, object]]:
    lines = (GOLDENS / f"{name}.env").read_text().splitlines()
    environment = {key: value for key, _, value in (line.partition("=") for line in lines)}
    return environment, json.loads((GOLDENS / f"{name}.json").read_text())


def read_step(call: Call, environment: dict[str, str]) -> dict[str, str]:
    done = call("step", env=environment)
    assert done.returncode == 0, done.stderr
    return dict(line.split("=", 1) for line in done.stdout.decode().splitlines())


@pytest.mark.parametrize("name", NAMES)
def test_a_captured_environment_is_read_as_it_was(call: Call, name: str) -> None:
    environment, expected = golden(name)
    found = read_step(call, environment)
    assert found.pop("served").split() == expected.pop("served")
    if expected.pop("uname") == expected["node"]:
        expected["node"] = environment.get("SLURMD_NODENAME", os.uname().nodename)
        if "MPI_LOCALRANKID" in environment or "OMPI_COMM_WORLD_RANK" in environment:
            expected["node"] = os.uname().nodename
    if expected["launcher"] == "local":
        expected["node"] = os.uname().nodename
        together = expected["local_ntasks"] != 1
        own_scope = rf"mpiexec-{os.getpid()}" if together else r"local-\d+-\d+"
        assert re.fullmatch(own_scope, found.pop("scope")) and expected.pop("scope") == ""
    assert {key: found[key] for key in expected} == {key: str(value) for key, value in expected.items()}
    assert found["shared"] == str(int(expected["local_ntasks"] != 1))


_VALUES = [
    "",
    "0",
    "1",
    "2",
    "4",
    "5",
    "007",
    "-1",
    "+1",
    " 1",
    "1 ",
    "x",
    "4294967295",
    "4294967296",
    "batch",
    "99999999999",
]
_CHANGES = st.dictionaries(
    st.sampled_from(
        ["SLURM_JOB_ID", "SLURM_JOBID", "SLURM_STEP_ID", "SLURM_STEPID", "SLURM_PROCID", "SLURM_LOCALID",
         "SLURM_NODEID", "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", "SLURM_HET_SIZE", "PMI_FD", "PMI_RANK",
         "PMI_SIZE", "PMI_PORT", "MPI_LOCALRANKID", "MPI_LOCALNRANKS", "PMIX_RANK", "PMIX_NAMESPACE",
         "PMIX_SERVER_URI2", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"]
    ),
    st.sampled_from([*_VALUES, None]),
    max_size=4,
)  # fmt: skip


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(NAMES), _CHANGES)
def test_both_read_a_changed_environment_alike(call: Call, name: str, changes: dict[str, str | None]) -> None:
    environment, _ = golden(name)
    merged = {key: value for key, value in (environment | changes).items() if value is not None}
    done = call("step", env=merged)
    try:
        expected = recognise(merged, cwd="/", node=os.uname().nodename)
    except HpcpodError as error:
        assert done.returncode == error.exit_code and f"[{error.slug}]" in done.stderr.decode(), merged
        return
    assert done.returncode == 0, (merged, done.stderr)
    found = dict(line.split("=", 1) for line in done.stdout.decode().splitlines())
    assert found["served"].split() == sorted(kind.value for kind in expected.served)
    for key in ("launcher", "job_id", "step_id", "node", "rank", "local_rank", "ntasks"):
        assert found[key] == str(getattr(expected, key)), (key, merged)
    if expected.launcher == "slurm":
        assert found["scope"] == expected.scope
    assert found["local_ntasks"] in ("0", str(expected.local_ntasks))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(alphabet="0123(x),-+ ", max_size=14), st.integers(0, 6))
def test_both_count_the_tasks_of_a_node_alike(call: Call, text: str, node: int) -> None:
    found = int(call("counts", text, str(node)).stdout)
    try:
        expected = tasks_on_node(text, node)
    except ValueError:
        assert found == -2
    else:
        assert found == (-1 if expected is None else expected)


# ------------------------------------------------------------------ the run-time directory


def both_directories(call: Call, environment: dict[str, str], **more: object) -> tuple[str, str]:
    """What C says and what Python says; empty for a refusal."""
    done = call("runtime", env=environment, **more)
    native = done.stdout.decode().rstrip("\n") if done.returncode == 0 else ""
    try:
        return native, config.runtime_directory(environment, os.getuid())
    except StoreUnusable as error:
        assert error.slug in done.stderr.decode() or native
        return native, ""


def _plant(path: Path, what: str) -> None:
    match what:
        case "directory":
            path.mkdir(mode=0o700)
        case "open":
            path.mkdir(mode=0o700)
            path.chmod(0o750)
        case "file":
            path.touch(mode=0o700)
        case "link":
            (path.parent / "elsewhere").mkdir(mode=0o700)
            path.symlink_to(path.parent / "elsewhere")
        case "dangling":
            path.symlink_to(path.parent / "nowhere")
        case "fifo":
            os.mkfifo(path, 0o700)
        case "orphan":
            path.parent.rmdir()


@pytest.mark.parametrize(
    "what", ["nothing", "directory", "open", "file", "link", "dangling", "fifo", "orphan"]
)
def test_a_named_directory_is_taken_by_both_or_by_none(call: Call, tmp_path: Path, what: str) -> None:
    path = tmp_path / "parent" / "runtime"
    path.parent.mkdir()
    _plant(path, what)
    native, python = both_directories(call, {"HPCPOD_RUNTIME": str(path)})
    assert native == python == (str(path) if what in ("nothing", "directory") else "")


def test_a_path_that_is_too_long_is_refused_not_cut(call: Call, tmp_path: Path) -> None:
    long = str(tmp_path) + "/." * 2100
    assert call("runtime", env={"HPCPOD_RUNTIME": long}).returncode == 125
    assert call("runtime", env={"HPCPOD_RUNTIME": f"{tmp_path}/{'x' * 5000}"}).returncode == 125


_AS_ANOTHER = """
import os, sys
from hpcpod import config
uid, *program = sys.argv[1:]
os.setgroups([]), os.setgid(int(uid)), os.setuid(int(uid))
os.execve(program[0], program, {}) if program else print(config.runtime_directory({}, int(uid)))
"""


def as_another(uid: int, *program: str) -> str:
    """The run-time directory of this user, by C (the driver) or by Python (no program)."""
    words = [sys.executable, "-c", _AS_ANOTHER, str(uid), *program]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.rstrip("\n")


@pytest.mark.needs("root")
@pytest.mark.parametrize("what", ["directory", "file", "link", "dangling", "fifo"])
def test_names_that_another_user_took_are_passed_over_by_both(driver: Path, what: str) -> None:
    uid = 65533 - len(what)  # nobody's
    base = Path(f"/dev/shm/hpcpod-{uid}")
    readable = Path(tempfile.mkdtemp(prefix="hpcpod-test-", dir="/var/tmp"))
    readable.chmod(0o755)
    made = [base, Path(f"{base}.1")]
    assert not any(os.path.lexists(name) for name in (*made, Path(f"{base}.2")))
    try:
        program = str(shutil.copy(driver, readable))
        for name in made:
            if what == "link":
                name.symlink_to("/dev/shm")
            else:
                _plant(name, what)
        made.append(Path(f"{base}.2"))
        assert as_another(uid) == f"{base}.2"
        made[-1].rmdir()
        assert as_another(uid, program, "runtime") == f"{base}.2"
    finally:
        shutil.rmtree(readable)
        for name in made:
            if name.is_dir() and not name.is_symlink():
                name.rmdir()
            elif os.path.lexists(name):
                name.unlink()
