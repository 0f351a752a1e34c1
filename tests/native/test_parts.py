# SPDX-License-Identifier: Apache-2.0
"""Smaller parts: the environment's operations, the explanation of a failed exec, event lines."""

from __future__ import annotations

import errno
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hpcpod.model import EnvDefault, EnvKeep, EnvOp, EnvSet, EnvUnset
from tests.native.records import with_environment

Call = Callable[..., subprocess.CompletedProcess[bytes]]

pytestmark = pytest.mark.needs("sanitizers")


def apply(call: Call, environment: dict[str, str], *ops: EnvOp) -> dict[str, str]:
    done = call("environment", env=environment, record=with_environment(*ops))
    assert done.returncode == 0, done.stderr
    entries = [os.fsdecode(entry) for entry in done.stdout.split(b"\0") if entry]
    assert len({entry.partition("=")[0] for entry in entries}) == len(entries)
    return {key: value for key, _, value in (entry.partition("=") for entry in entries)}


def model(environment: dict[str, str], ops: tuple[EnvOp, ...]) -> dict[str, str]:
    """The meaning of the operations (model.py), in Python."""
    result = dict(environment)
    kept = {op.name for op in ops if isinstance(op, EnvKeep)}
    for op in ops:
        match op:
            case EnvSet(name, value):
                result[name] = value
            case EnvDefault(name, value):
                result.setdefault(name, value)
            case EnvUnset(pattern):
                for name in list(result):
                    hit = name.startswith(pattern[:-1]) if pattern.endswith("*") else name == pattern
                    if hit and name not in kept:
                        del result[name]
    return result


_NAMES = st.sampled_from(["A", "AB", "ABC", "B", "LD_X", "LD_Y", "LD", "_"])
_OPS = st.one_of(
    st.builds(EnvSet, _NAMES, st.sampled_from(["", "1", "x=y", "\u00e9\n"])),
    st.builds(EnvDefault, _NAMES, st.just("default")),
    st.builds(EnvUnset, st.sampled_from(["A", "A*", "LD_*", "LD*", "*", "B"])),
    st.builds(EnvKeep, _NAMES),
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(_NAMES, st.sampled_from(["", "v", "="])), st.lists(_OPS, max_size=8))
def test_operations_mean_what_the_model_says(
    call: Call, environment: dict[str, str], ops: list[EnvOp]
) -> None:
    assert apply(call, environment, *ops) == model(environment, tuple(ops))


def test_a_huge_environment_is_no_trouble(call: Call) -> None:
    environment = {f"V{n}": "x" * 20 for n in range(20000)}
    found = apply(call, environment, EnvUnset("V1*"), EnvSet("NEW", "1"))
    assert len(found) == 20000 - 11111 + 1


def explain(call: Call, program: str | Path, error: int, path: str = "/usr/bin:/bin") -> tuple[int, str]:
    done = call("explain", str(program), str(error), env={"PATH": path})
    return done.returncode, done.stderr.decode()


@pytest.mark.parametrize(
    ("program", "error", "status", "expected"),
    [
        (
            "nosuch",
            errno.ENOENT,
            127,
            "nosuch: no such program in the image [not-found]\nhint: it was looked for along",
        ),
        ("/no/such", errno.ENOENT, 127, "/no/such: no such program"),
        ("", errno.ENOENT, 127, ": no such program"),
        ("/", errno.EACCES, 126, "/: Permission denied [exec]"),
        ("/etc", errno.EACCES, 126, "/etc: Permission denied"),
        ("sh", errno.E2BIG, 126, "Argument list too long"),
        ("\x1b[31m", errno.ENOENT, 127, r"\x1b[31m: no such"),
    ],
)
def test_an_exec_that_failed_is_explained(
    call: Call, program: str, error: int, status: int, expected: str
) -> None:
    found = explain(call, program, error)
    assert found[0] == status
    assert expected in found[1]


def test_a_missing_interpreter_is_named(call: Call, tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("#!/opt/nothing/perl -w\nprint 1\r\n")
    status, text = explain(call, script, errno.ENOENT)
    assert (
        status == 126
        and "its interpreter /opt/nothing/perl is not in the image" in text
        and "hint" not in text
    )
    script.write_text("#! /bin/sh\r\n")
    status, text = explain(call, script, errno.ENOENT)
    assert status == 126 and "carriage return" in text


def test_a_script_without_a_first_line_is_named(call: Call, tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("echo 1\n")
    status, text = explain(call, script, errno.ENOEXEC)
    assert status == 126 and "#!/bin/sh" in text


def test_a_missing_loader_and_another_architecture_are_named(call: Call, tmp_path: Path) -> None:
    program = tmp_path / "program"
    original = Path("/bin/true").read_bytes()
    loader = (
        b"/lib64/ld-linux-x86-64.so.2"
        if b"/lib64/ld-linux-x86-64.so.2" in original
        else b"/lib/ld-linux-aarch64.so.1"
    )
    program.write_bytes(original.replace(loader, loader.replace(b"/ld-", b"/xx-")))
    status, text = explain(call, program, errno.ENOENT)
    assert status == 126 and "its loader" in text and "/xx-linux" in text
    program.write_bytes(original[:18] + b"\xf3\x00" + original[20:])  # EM_RISCV
    status, text = explain(call, program, errno.ENOEXEC)
    assert status == 126 and "ELF machine 243" in text


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=300), st.booleans())
def test_no_file_leads_the_explanation_astray(call: Call, tmp_path: Path, content: bytes, elf: bool) -> None:
    program = tmp_path / "odd"
    head = Path("/bin/true").read_bytes()[:64]
    program.write_bytes(head[:32] + content if elf else content)
    status, text = explain(call, program, errno.ENOEXEC)
    assert status == 126 and text.isprintable() is False and text.count("\x1b") == 0


@pytest.mark.parametrize(
    "reference",
    ["oci:x", 'a"b\\c', "\x01\x1f\x7f\n", "\u00e9" * 400, "x" * 9000, os.fsdecode(b"\xff\xfe"), ""],
)
def test_event_lines_are_json_whatever_the_names(call: Call, reference: str) -> None:
    environment = {"SLURM_JOB_ID": "1", "SLURM_STEP_ID": "2", "SLURM_PROCID": "0", "SLURM_LOCALID": "0",
                   "SLURM_NTASKS": "1", "SLURMD_NODENAME": '"' * 200}  # fmt: skip
    lines = call("event", os.fsencode(reference), env=environment).stdout
    assert len(lines) < 8192 and lines.isascii()
    parsed = [json.loads(line) for line in lines.splitlines()]
    assert [line["event"] for line in parsed] == ["prepare", "rank"]
    assert parsed[1]["image"] == os.fsencode(reference).decode("latin-1")[: len(parsed[1]["image"])]
