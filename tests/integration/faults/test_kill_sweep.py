# SPDX-License-Identifier: Apache-2.0
"""kill -9 at each state change of each command, in turn; the next command repairs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest

from tests.integration.faults.conftest import forms
from tests.testbed.crashes import Rig
from tests.testbed.injector import Run

pytestmark = pytest.mark.needs("gcc", "plain")

MOST = 1000
"""More state changes than any of these commands makes: the sweep ends before."""


@dataclass(frozen=True)
class Case:
    """before: commands that lead to the state in which `words` runs.  changes: it makes more than these.

    {one}, {two}: references.  {out}: the target of unpacking.  action: kill ends all processes at once,
    kill-one only the one that makes the change: its children must notice.
    """

    words: str
    before: tuple[str, ...] = ()
    changes: int = 10
    action: str = "kill"


CASES = [
    Case("image pull --rootfs=dir {one}", changes=40),
    Case("image pull --rootfs=squashfs {one}", changes=40),
    Case("image pull --rootfs=squashfs {one}", changes=40, action="kill-one"),
    Case("image pull {two}", ("image pull {one}", "image rm {one}")),
    Case("image unpack {one} {out}", changes=30),
    Case("image rm {one}", ("image pull {one}", "image pull {two}")),
    Case("image rm {one}", ("image pull --rootfs=squashfs {one}",), changes=4),
    Case("image gc --all", ("image pull {one}",), changes=20),
    Case("image pin {one}", ("image pull {one}",), changes=1),
]


def fill(rig: Rig, text: str) -> list[str]:
    """The words of a command, with the rig's names in them."""
    return text.format(**rig.references, out=rig.out).split()


def prepare(rig: Rig, commands: Sequence[str]) -> None:
    """Lead an empty store to a state."""
    rig.reset()
    for command in commands:
        rig.run(fill(rig, command)).check()


def kills(rig: Rig, case: Case) -> int:
    """Kill the command at each of its changes in turn, repair each time; how many changes there were."""
    for number in range(1, MOST):
        prepare(rig, case.before)
        run = rig.run(fill(rig, case.words), [f"changes:{number}:{case.action}"])
        rig.assert_whole(run)
        if not run.fired[0]:
            run.check()
            return number - 1
        repair(rig, case, run)
    raise AssertionError(f"{case.words}: no end after {MOST} changes")


def repair(rig: Rig, case: Case, run: Run) -> None:
    """After a kill: the same command succeeds, or what it does is done already; nothing is left over.

    For every other change the collector comes first, and must find its way through what was left, too.
    """
    if run.counts[0] % 2:
        rig.run(["image", "gc", *rig.site] if rig.site else ["gc"]).check()
    again = rig.run(fill(rig, case.words))
    done = " rm " in f" {case.words} " and "not in the store" in again.errors
    done |= " unpack " in case.words and "exists" in again.errors
    assert again.status == 0 or done, f"{again}\nafter {run}"
    rig.assert_whole(run)
    if " unpack " in case.words:
        rig.assert_unpacked("one", run)
    rig.clean(run)


def _applies(case: Case) -> bool:
    return "squashfs" in forms() or "squashfs" not in f"{case.words}{case.before}"


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.action} {case.words}")
def test_kill_at_each_change(rig: Rig, case: Case) -> None:
    if not _applies(case):
        pytest.skip("no program here packs or serves squashfs")
    assert kills(rig, case) >= case.changes
    rig.run(fill(rig, "image unpin {one}"))
    rig.empty()


def test_the_sweep_sees_what_a_kill_breaks(rig: Rig) -> None:
    """The checks themselves: they must see each kind of damage that a careless store would have."""
    damages: list[tuple[str, Callable[[Rig], object]]] = [
        ("tmp", lambda rig: (rig.store / "tmp" / "x").mkdir()),
        ("garbage", lambda rig: (rig.store / "garbage" / "x").mkdir()),
        ("version.1-2", lambda rig: (rig.store / "version.1-2").touch()),
    ]
    for name, damage in damages:
        prepare(rig, ["image pull {one}"])
        damage(rig)
        with pytest.raises(AssertionError, match=name.replace(".", r"\.")):
            rig.clean()
    prepare(rig, ["image pull {one}"])
    entry = next((rig.store / "images").iterdir())
    tool = entry / "rootfs" / "bin" / "tool"
    tool.write_bytes(tool.read_bytes()[:-1])
    with pytest.raises(AssertionError, match="bin/tool"):
        rig.assert_whole()
