# SPDX-License-Identifier: Apache-2.0
"""Each state change, open or write in turn fails: a clear error or the right result, nothing half-made."""

from __future__ import annotations

import re
from dataclasses import dataclass

import pytest

from tests.integration.faults.conftest import forms
from tests.integration.faults.test_kill_sweep import MOST, fill, prepare
from tests.testbed.crashes import Rig
from tests.testbed.injector import Run

pytestmark = pytest.mark.needs("gcc", "plain")

CALLS = {
    "ENOSPC": "changes",
    "EDQUOT": "changes",
    "EIO": "changes",
    "EINTR": "changes",
    "EMFILE": "opens",
    "ESTALE": "pread64",
    "half": "write+pwrite64",
}
"""Which calls fail how.  half: a write that takes half of what it is given, as write(2) may."""
FULL = ("ENOSPC", "EDQUOT")
NOT_OURS = ("/proc/", "/usr/", "/etc/")
"""Opens of what is not hpcpod's: an interpreter without its files may end as it likes."""


@dataclass(frozen=True)
class Case:
    """As the sweep's.  errors: those that are tried."""

    words: str
    before: tuple[str, ...] = ()
    errors: tuple[str, ...] = tuple(CALLS)


CASES = [
    Case("image pull --rootfs=dir {two}"),
    Case("image pull --rootfs=squashfs {two}", errors=("ENOSPC", "EMFILE", "half")),
    Case("image unpack {two} {out}"),
    Case("image unpack {one} {out}", errors=("ESTALE",)),
    Case("image rm {two}", ("image pull --rootfs=dir {two}",), errors=("EIO", "EINTR")),
    Case("image gc --all", ("image pull --rootfs=dir {two}",), errors=("EIO",)),
]
LONGEST = 100
"""Opens of one command that are tried: removing looks into each process of the machine."""


def check_message(run: Run, name: str) -> None:
    """A failed command said one line, with a hint at most, that an ordinary user understands."""
    lines = [line for line in run.errors.splitlines() if not line.startswith("hint: ")]
    assert len(lines) == 1, str(run)
    assert re.fullmatch(r"hpcpod: .*[/\w].* \[[a-z-]+\]", lines[0]), str(run)
    assert not re.search(r"\[internal\]|Traceback|b'", run.errors), str(run)
    assert "[image-" not in lines[0], f"the image is blamed: {run}"
    if name in FULL and "/store/" in run.fired[0]:
        assert "[store-full]" in lines[0], str(run)


def check_run(rig: Rig, run: Run, name: str) -> None:
    """What must be so right after a call failed."""
    assert not run.late and not run.left and run.signal == 0, str(run)
    rig.assert_whole(run)
    if run.status != 0:
        check_message(run, name)
        assert not rig.out.exists()
    elif "unpack" in run.words:
        rig.assert_unpacked("one" if rig.references["one"] in run.words else "two", run)
    elif "pull" in run.words:
        assert rig.names(), str(run)


@pytest.mark.parametrize(
    ("case", "name"),
    [(case, name) for case in CASES for name in case.errors],
    ids=lambda value: value if isinstance(value, str) else value.words,
)
def test_each_call_fails(rig: Rig, case: Case, name: str) -> None:
    if "squashfs" in case.words and "squashfs" not in forms():
        pytest.skip("no program here packs or serves squashfs")
    for number in range(1, LONGEST if CALLS[name] == "opens" else MOST):
        prepare(rig, case.before)
        run = rig.run(fill(rig, case.words), [f"{CALLS[name]}:{number}:{name}"])
        if not run.fired[0]:
            run.check()
            break
        if any(place in run.fired[0] for place in NOT_OURS):
            continue
        check_run(rig, run, name)
        again = rig.run(fill(rig, case.words))
        done = ("rm" in run.words and "not in the store" in again.errors) or "exists" in again.errors
        assert again.status == 0 or done, f"{again}\nafter {run}"
        rig.assert_whole(run)
        rig.clean(run)
