# SPDX-License-Identifier: Apache-2.0
"""Two machines on one directory where locks are absent; a machine that was booted again."""

from __future__ import annotations

import os
import uuid
from pathlib import Path
from typing import Any

import pytest

from hpcpod.images.stores import embryo
from tests.integration.faults.conftest import MakeRig, learn, plain_uid
from tests.integration.faults.test_random_kills import NO_LOCKS
from tests.testbed.crashes import Rig, leftovers
from tests.testbed.injector import Machine

pytestmark = pytest.mark.needs("gcc", "root", "plain")

CROWD = 4


@pytest.fixture(scope="module")
def rig(make_rig: MakeRig) -> Rig:
    rig = make_rig(plain_uid())
    learn(rig)
    return rig


class Host:
    """A machine: a name, a boot, and a run-time directory of its own on the rig's one store."""

    def __init__(self, rig: Rig, name: str) -> None:
        self._rig = rig
        self._file = rig.base / f"boot-{name}"
        self.runtime = rig.base / f"runtime-{name}"
        self.name = name
        self.boot()

    def boot(self) -> None:
        """Boot it (again): another boot id, and nothing on memory."""
        self._file.write_text(f"{uuid.uuid4()}\n")
        self._file.chmod(0o644)
        for path in sorted(self.runtime.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()

    def where(self) -> dict[str, Any]:
        """What start() and run() need to run a command here."""
        return {
            "machine": Machine(self.name, str(self._file)),
            "env": {"HPCPOD_RUNTIME": str(self.runtime)},
        }


@pytest.fixture
def hosts(rig: Rig) -> list[Host]:
    """Four machines."""
    rig.reset()
    return [Host(rig, f"n{number}") for number in range(CROWD)]


def pull(rig: Rig, image: str = "two") -> list[str]:
    return ["image", "pull", "--rootfs=dir", rig.references[image]]


def state_changes(rig: Rig, words: list[str]) -> int:
    """How many changes a command makes in an empty store; the store is empty again."""
    count = rig.run(words, ["changes:*:count"]).counts[0]
    rig.reset()
    return count


def half_made(rig: Rig) -> set[str]:
    return set(os.listdir(rig.store / "tmp")) if (rig.store / "tmp").exists() else set()


def test_machines_are_told_apart(rig: Rig, hosts: list[Host]) -> None:
    """What the other tests rest on: the name and the boot are those of the machine."""
    names = set()
    for host in hosts:
        running = rig.start(pull(rig), ["syncfs:1:hold"], **host.where())
        assert running.held()
        names |= half_made(rig)
        running.kill()
        running.result()
    assert len(names) == CROWD
    assert len({name.split("-")[0] for name in names}) == CROWD


def test_many_machines_pull_at_once(rig: Rig, hosts: list[Host]) -> None:
    """Without locks each does the work; all succeed, one copy stays, and no other is left."""
    started = [rig.start(pull(rig), [NO_LOCKS], **host.where()) for host in hosts]
    for running in started:
        running.result().check()
    assert len(rig.names()) == 1
    rig.assert_whole()
    rig.clean()


@pytest.mark.parametrize("other", ["image pull", "image gc --all", "gc", "image rm"])
def test_nobody_removes_what_another_machine_makes(rig: Rig, hosts: list[Host], other: str) -> None:
    """At each change of a pull on one machine, another machine runs a command; both succeed."""
    words = other.split() + ([rig.references["two"]] if other in ("image pull", "image rm") else [])
    most = state_changes(rig, pull(rig))
    assert most > 20
    first, second = hosts[:2]
    for number in range(1, most + 1):
        rig.reset()
        running = rig.start(pull(rig), [f"changes:{number}:hold", NO_LOCKS], **first.where())
        held = running.held()
        end = rig.run(words, [NO_LOCKS], **second.where())
        assert end.status == 0 or "not in the store" in end.errors, f"{end}\nat {held}"
        running.go_on() if held else None
        done = running.result()
        assert done.status == 0 or (other != "image pull" and "vanished again" in done.errors), str(done)
        rig.assert_whole(done)
        rig.clean(done)


def test_a_process_of_the_same_machine_is_not_disturbed(rig: Rig) -> None:
    """The same with locks, on one machine, for what does not wait for the lock."""
    most = state_changes(rig, pull(rig))
    for number in range(1, most + 1):
        rig.reset()
        running = rig.start(pull(rig), [f"changes:{number}:hold"])
        held = running.held()
        for words in (["gc"], ["image", "gc"], pull(rig, "one")):
            rig.run(words).check()
        running.go_on() if held else None
        running.result().check()
        rig.assert_whole(held)
        rig.clean(held)


def test_who_waits_takes_over_from_the_dead(rig: Rig) -> None:
    """Who unpacks is killed at each change while another waits for it: that one does the work."""
    most = state_changes(rig, pull(rig))
    for number in range(1, most + 1):
        rig.reset()
        first = rig.start(pull(rig), [f"changes:{number}:hold"])
        held = first.held()
        second = rig.start(pull(rig))
        if held:
            first.kill()
        first.result()
        second.result().check()
        rig.assert_whole(held)
        rig.clean(held)


def test_reboot_in_the_middle_of_unpacking(rig: Rig, hosts: list[Host]) -> None:
    """Power was cut, the machine is up again with its memory empty: the next command repairs at once."""
    host = hosts[0]
    most = state_changes(rig, pull(rig))
    for number in range(1, most + 1):
        rig.reset()
        host.boot()
        cut = rig.run(pull(rig), [f"changes:{number}:kill"], **host.where())
        rig.assert_whole(cut)
        host.boot()
        rig.run(["image", "gc"], **host.where()).check()
        assert not leftovers(rig.store, host.runtime), str(cut)
        rig.run(pull(rig), **host.where()).check()
        rig.assert_whole(cut)


def test_a_dead_machine_is_tidied_up_after_by_its_neighbour(rig: Rig, hosts: list[Host]) -> None:
    """Whether its maker lives cannot be asked: what has given no sign for long is dead."""
    rig.run(pull(rig), ["syncfs:1:kill"], **hosts[0].where())
    (left,) = half_made(rig)
    for age, stays in (
        (0, {left}),
        (embryo.FOREIGN_SECONDS - 60, {left}),
        (embryo.FOREIGN_SECONDS + 60, set()),
    ):
        _age(rig.store / "tmp" / left, age)
        rig.run(["image", "gc"], **hosts[1].where()).check()
        assert half_made(rig) == stays


def _age(path: Path, seconds: float) -> None:
    then = path.stat().st_mtime - seconds
    os.utime(path, (then, then))


@pytest.mark.parametrize("calls", ["looks", "opens", "changes"])
def test_stale_handles(rig: Rig, hosts: list[Host], calls: str) -> None:
    """ESTALE, as where another machine removed what this one had open: an error, or the right result."""
    count = rig.run(pull(rig), [f"{calls}:*:count"], **hosts[0].where()).counts[0]
    step = max(1, count // 60)
    for number in range(1, count + 1, step):
        rig.reset()
        failed = rig.run(pull(rig), [f"{calls}:{number}:ESTALE", NO_LOCKS], **hosts[0].where())
        assert "Traceback" not in failed.errors, str(failed)
        rig.assert_whole(failed)
        rig.run(pull(rig), [NO_LOCKS], **hosts[0].where()).check()
        rig.assert_whole(failed)
