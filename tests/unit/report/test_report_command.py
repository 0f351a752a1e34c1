# SPDX-License-Identifier: Apache-2.0
"""The command: where it finds events, and what it does about lines that are none."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from hpcpod.cli.report import report
from hpcpod.errors import EXIT_HPCPOD, Fault, HpcpodError, ReportEmpty, UsageError
from tests.unit.report.samples import prepare_line, rank_line


@pytest.fixture
def events(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run-time directory's events: two steps of job 12, one of job 120, and two lone runs."""
    monkeypatch.setenv("HPCPOD_RUNTIME", str(tmp_path))
    tmp_path.chmod(0o700)
    folder = tmp_path / "events"
    folder.mkdir()
    for index, scope in enumerate(("slurm-12.0", "slurm-12.1", "slurm-120.0")):
        job, _, step = scope.removeprefix("slurm-").partition(".")
        where: dict[str, Any] = {"scope": scope, "job": job, "step": step}
        (folder / f"{scope}.jsonl").write_text(f"{rank_line(0, **where)}\n{rank_line(1, 'n1', **where)}\n")
        os.utime(folder / f"{scope}.jsonl", (index, index))
    lone: dict[str, Any] = {"launcher": "local", "job": "", "step": ""}
    (folder / "local.jsonl").write_text(
        f"{rank_line(0, scope='local-1-1', **lone)}\n{rank_line(0, scope='local-2-2', **lone)}\n"
    )
    os.utime(folder / "local.jsonl", (0, 0))
    return folder


def invoke(*arguments: str, stdin: str = "") -> Result:
    return CliRunner().invoke(report, arguments, input=stdin)


def scopes(*arguments: str, stdin: str = "") -> list[str]:
    done = invoke("--json", *arguments, stdin=stdin)
    assert done.exit_code == 0, done.exception
    return [found["scope"] for found in json.loads(done.stdout)["reports"]]


def test_the_latest_start_of_this_node(events: Path) -> None:
    assert scopes() == ["slurm-120.0"]
    os.utime(events / "local.jsonl", (9, 9))
    assert scopes() == ["local-2-2"]


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("12", ["slurm-12.0", "slurm-12.1"]),
        ("12.1", ["slurm-12.1"]),
        ("120", ["slurm-120.0"]),
        ("slurm-12.0", ["slurm-12.0"]),
        ("local-1-1", ["local-1-1"]),
    ],
)
def test_jobs_steps_and_scopes(events: Path, word: str, expected: list[str]) -> None:
    assert scopes(word) == expected


def test_an_unknown_name_is_answered_by_those_that_there_are(events: Path) -> None:
    done = invoke("nonsense")
    assert isinstance(done.exception, ReportEmpty)
    hint = str(done.exception.hint)
    assert hint.startswith("here are ") and "slurm-12.1" in hint and "local-2-2" in hint


def test_files_directories_and_standard_input(events: Path) -> None:
    assert scopes(str(events / "slurm-12.1.jsonl")) == ["slurm-12.1"]
    assert len(scopes(str(events))) == 5
    assert scopes("-", stdin=rank_line()) == ["slurm-12.0"]


def test_raw_lines_of_nodes_make_one_report(events: Path) -> None:
    raw = invoke("--raw", "12.0").stdout
    assert raw == (events / "slurm-12.0.jsonl").read_text()
    done = invoke("-", stdin=raw + prepare_line("n1") + "\n")
    assert "2 ranks on 2 nodes" in done.stdout
    assert "resolve" in done.stdout


def test_lines_that_are_no_events_are_named_and_counted(events: Path) -> None:
    done = invoke("-", stdin=f"{rank_line()}\n" + "srun: warning\n" * 9)
    assert done.exit_code == 0
    assert "job 12 step 0: 1 rank" in done.stdout
    assert "standard input:2: passed over: no JSON" in done.stderr
    assert "9 lines passed over in all" in done.stderr
    told = json.loads(invoke("--json", "-", stdin=f"{rank_line()}\nx\n").stdout)
    assert told["malformed"] == [{"where": "standard input:2", "why": "no JSON"}]


def failed(*arguments: str, stdin: str = "") -> HpcpodError:
    done = invoke(*arguments, stdin=stdin)
    assert isinstance(done.exception, HpcpodError), done.output
    return done.exception


def test_nothing_to_report_is_an_error(events: Path) -> None:
    for error in (failed("13"), failed("-"), failed("-", stdin=prepare_line())):
        assert isinstance(error, ReportEmpty)
        assert (error.exit_code, error.fault) == (EXIT_HPCPOD, Fault.USER)
        assert error.hint
    for path in events.iterdir():
        path.unlink()
    assert isinstance(failed(), ReportEmpty)
    events.rmdir()
    assert isinstance(failed(), ReportEmpty)


def test_a_file_that_cannot_be_read_is_named(events: Path) -> None:
    error = failed(str(events / "absent.jsonl"))
    assert isinstance(error, UsageError)
    assert "absent.jsonl" in error.message
