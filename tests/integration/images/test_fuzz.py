# SPDX-License-Identifier: Apache-2.0
"""Every target of tests/fuzz: its seeds, what it once found, and a bounded run that is the same each time."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import PACKAGES, ROOT
from tests.fuzz.target import targets

TARGETS = targets()
INPUTS = [
    pytest.param(name, data, id=f"{name}: {what}", marks=pytest.mark.needs(*target.tools))
    for name, target in TARGETS.items()
    for what, data in {**target.seeds, **target.known}.items()
]


@pytest.mark.parametrize(("name", "data"), INPUTS)
def test_inputs(name: str, data: bytes) -> None:
    TARGETS[name].run(data)


@pytest.mark.needs("atheris")
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.needs(*target.tools)) for name, target in TARGETS.items()]
)
def test_bounded_run(name: str, tmp_path: Path) -> None:
    # A shell between: the peak of memory that libFuzzer looks at would be this process's own (getrusage(2)).
    shell = ["sh", "-c", '"$@"; exit $?', "sh"]
    words = [*shell, sys.executable, "-m", "tests.fuzz", name, "--seed", "1", "--corpus", str(tmp_path)]
    done = subprocess.run(
        [*words, "--runs", str(TARGETS[name].runs)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{PACKAGES}:{ROOT}", "PYTHONHASHSEED": "0"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    found = [path for path in tmp_path.iterdir() if path.name != "inputs"]
    assert (done.returncode, found) == (0, []), done.stderr[-4000:]
    # It was guided: what was new was kept.
    assert any((tmp_path / "inputs").iterdir())
