# SPDX-License-Identifier: Apache-2.0
"""The fault injector itself, with programs whose system calls are known."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

from tests.testbed.injector import build

pytestmark = pytest.mark.needs("gcc")


@pytest.fixture(scope="module")
def injector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("injector"), program=True)


def run(injector: Path, rules: list[str], *command: str) -> tuple[dict[str, Any], str]:
    """Run a command under these rules; the report, and what it printed."""
    with tempfile.NamedTemporaryFile("r") as report:
        options = [word for rule in rules for word in ("-r", rule)]
        words: list[str] = [str(injector), "-o", report.name, *options, "--", *command]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        return json.loads(report.read()), done.stdout + done.stderr


def python(lines: str) -> tuple[str, ...]:
    return (sys.executable, "-I", "-S", "-B", "-c", lines)


CHANGES = "import os; os.mkdir('{0}/a'); os.rename('{0}/a', '{0}/b'); os.rmdir('{0}/b'); print('end')"


def test_changes_are_counted(injector: Path, tmp_path: Path) -> None:
    report, said = run(injector, ["changes:*:count", "rmdir:1:count"], *python(CHANGES.format(tmp_path)))
    assert (report["status"], said) == (0, "end\n")
    assert [rule["count"] for rule in report["rules"]] == [3, 1]


@pytest.mark.parametrize(
    ("rule", "left"),
    [
        ("changes:1:kill", set()),
        ("changes:2:kill", {"a"}),
        ("changes:2:kill-after", {"b"}),
        ("changes:3:kill", {"b"}),
        ("rename:1:kill-one", {"a"}),
    ],
)
def test_kill_stops_before_or_after_a_change(
    injector: Path, tmp_path: Path, rule: str, left: set[str]
) -> None:
    report, said = run(injector, [rule], *python(CHANGES.format(tmp_path)))
    assert (report["signal"], said) == (9, "")
    assert set(os.listdir(tmp_path)) == left
    assert report["rules"][0]["fired"]


def test_what_fired_is_named(injector: Path, tmp_path: Path) -> None:
    report, _ = run(injector, ["changes:2:kill"], *python(CHANGES.format(tmp_path)))
    assert report["rules"][0]["fired"] == f"rename {tmp_path}/b"


@pytest.mark.parametrize("name", ["ENOSPC", "EDQUOT", "EIO", "EROFS", "ESTALE", "EMFILE"])
def test_call_fails(injector: Path, tmp_path: Path, name: str) -> None:
    report, said = run(injector, [f"rename:1:{name}"], *python(CHANGES.format(tmp_path)))
    assert report["status"] == 1
    assert os.listdir(tmp_path) == ["a"]
    assert f"Errno {getattr(errno, name)}" in said


def test_each_call_fails(injector: Path, tmp_path: Path) -> None:
    lock = (
        f"import fcntl, os; f = os.open('{tmp_path}', 0)\n"
        "for _ in range(3):\n"
        "  try: fcntl.flock(f, 2)\n"
        "  except OSError as e: print(e.errno)"
    )
    report, said = run(injector, ["flock:*:ENOLCK"], *python(lock))
    assert said.split() == ["37"] * 3
    assert report["rules"][0]["count"] == 3


def test_interrupted_call_is_made_again(injector: Path, tmp_path: Path) -> None:
    report, said = run(injector, ["openat:*:count", "openat:1:EINTR"], "true")
    assert report["status"] in (0, 127), said  # the loader gives up its cache, or finds no libc
    report, said = run(
        injector, ["write:1:EINTR"], *python(f"import os; os.write(os.open('{tmp_path}/f', 65, 384), b'x')")
    )
    assert report["status"] == 0, said
    assert (tmp_path / "f").read_bytes() == b"x"


def test_half_a_write(injector: Path, tmp_path: Path) -> None:
    code = f"import os; print(os.write(os.open('{tmp_path}/f', 65, 384), b'1234'))"
    report, said = run(injector, ["changes:2:half"], *python(code))
    assert (report["status"], said) == (0, "2\n")


def test_children_and_threads_are_followed_and_killed(injector: Path, tmp_path: Path) -> None:
    code = (
        "import os, threading, time\n"
        f"t = threading.Thread(target=lambda: os.mkdir('{tmp_path}/thread')); t.start(); t.join()\n"
        "if os.fork() == 0:\n"
        "  if os.fork() == 0: time.sleep(60)\n"
        f"  os.mkdir('{tmp_path}/child'); os.mkdir('{tmp_path}/never')\n"
        "time.sleep(60)"
    )
    start = time.monotonic()
    report, _ = run(injector, ["mkdir:3:kill"], *python(code))
    assert report["signal"] == 9
    assert report["rules"][0]["count"] == 3
    assert set(os.listdir(tmp_path)) == {"thread", "child"}
    assert time.monotonic() - start < 50


def test_what_stays_behind_is_seen(injector: Path) -> None:
    report, _ = run(injector, ["mkdir:1:count"], "sh", "-c", "sleep 60 > /dev/null 2>&1 & exit 3")
    assert (report["status"], report["left"]) == (3, 1)


@pytest.mark.parametrize("rule", ["", "mkdir", "mkdir:1", "mkdir:x:kill", "nocall:1:kill", "mkdir:1:EWHAT"])
def test_rule_that_is_not_understood(injector: Path, rule: str) -> None:
    done = subprocess.run([injector, "-r", rule, "true"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "not understood" in done.stderr
