# SPDX-License-Identifier: Apache-2.0
"""kill -9 at random system calls, of one command or of several at once; every later command succeeds.

HPCPOD_FAULT_ROUNDS and HPCPOD_FAULT_SEED make it longer, or the same again; both are printed when it fails.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.conftest import remove_tree
from tests.integration.faults.conftest import forms
from tests.testbed.crashes import IMAGES, Rig
from tests.testbed.injector import Run

pytestmark = pytest.mark.needs("gcc", "plain")

KILLS = int(os.environ.get("HPCPOD_FAULT_ROUNDS", "500"))
SEED = int(os.environ.get("HPCPOD_FAULT_SEED", "0")) or random.SystemRandom().getrandbits(32)
ACTIONS = ("kill", "kill-after", "kill-one")
AT_ONCE = (1, 1, 1, 2, 3, 4)
"""How many commands run at the same time; drawn for each round."""
SPARED, LOCKED = 0.3, 0.8
"""Parts of the commands that run beside others and are not killed, and of the rounds in which locks hold."""
NO_LOCKS = "flock:*:ENOLCK"
"""As on an NFS without its lock daemon."""
COMMANDS = (
    "image pull --rootfs=dir {image}",
    "image pull --rootfs=dir {image}",
    "image pull --rootfs=squashfs {image}",
    "image unpack {image} {out}",
    "image rm {image}",
    "image gc",
    "image gc --all",
    "gc",
)
"""What is run and killed; one line more adds a command."""
REFUSALS = {
    "rm": ("not in the store",),
    "unpack": (": exists",),
    "pull": ("vanished again",),
}
"""What a command may answer when another one that runs beside it was faster."""


@dataclass
class Count:
    """Of a whole run.  longest: per kind of command, the system calls that one makes at most."""

    longest: dict[str, int]
    kills: int = 0
    rounds: int = 0


def commands(rig: Rig) -> Iterator[list[str]]:
    """All commands, with each image and only the forms that this machine has."""
    for text in COMMANDS:
        if "squashfs" in text and "squashfs" not in forms():
            continue
        for image in IMAGES:
            if "{image}" in text or image == "one":
                yield text.format(image=rig.references[image], out=rig.out).split()


def measure(rig: Rig) -> dict[str, int]:
    """How many system calls each command makes from a store that gives it something to do."""
    longest = {}
    for words in commands(rig):
        rig.reset()
        if "pull" not in words:
            rig.run(["image", "pull", rig.references["one"]]).check()
        longest[" ".join(words)] = rig.run(words, ["all:*:count"]).counts[0]
    rig.reset()
    return longest


def check_end(run: Run, alone: bool) -> None:
    """A command that nobody killed: it succeeded, or says what another one was faster with."""
    name = run.words[1] if run.words[0] == "image" else run.words[0]
    reasons = () if alone and name == "pull" else REFUSALS.get(name, ())
    assert run.status == 0 or any(reason in run.errors for reason in reasons), str(run)
    assert not run.late and not run.left, str(run)


def play(rig: Rig, dice: random.Random, count: Count) -> list[Run]:
    """One round: some commands at once, most of them killed somewhere."""
    at_once = dice.choice(AT_ONCE)
    locks = [] if dice.random() < LOCKED else [NO_LOCKS]
    started = []
    for words in dice.choices(list(commands(rig)), k=at_once):
        number = dice.randint(1, count.longest[" ".join(words)])
        spared = at_once > 1 and dice.random() < SPARED
        kill = f"all:{number}:{'count' if spared else dice.choice(ACTIONS)}"
        started.append(rig.start(words, [kill, *locks]))
    runs = [each.result() for each in started]
    for run in runs:
        if not run.fired[0]:
            check_end(run, at_once == 1)
    count.kills += sum(run.killed for run in runs)
    count.rounds += 1
    return runs


def later(rig: Rig, dice: random.Random, runs: list[Run]) -> None:
    """What comes after a round: each command succeeds, and what it gives is right."""
    why = "\n".join(map(str, runs))
    rig.assert_whole(why)
    image = dice.choice(list(IMAGES))
    what = dice.choice(["pull", "pull", "unpack", "empty"])
    if rig.out.exists():  # whatever died there, it is one of the images, or not there
        rig.assert_is_one_of(rig.out, why)
        remove_tree(rig.out)
    if what == "pull":
        rig.run(["image", "pull", f"--rootfs={dice.choice(forms())}", rig.references[image]]).check()
        rig.assert_whole(why)
    elif what == "unpack":
        rig.run(["image", "unpack", rig.references[image], rig.out]).check()
        rig.assert_unpacked(image, why)
        remove_tree(rig.out)
    else:
        rig.empty(why)


def test_random_kills(rig: Rig, capsys: pytest.CaptureFixture[str]) -> None:
    """Until so many commands were killed."""
    print(f"HPCPOD_FAULT_SEED={SEED} HPCPOD_FAULT_ROUNDS={KILLS}")
    dice = random.Random(SEED)
    count = Count(measure(rig))
    while count.kills < KILLS:
        assert count.rounds < 20 * KILLS, f"only {count.kills} of {KILLS} kills"
        later(rig, dice, play(rig, dice, count))
        if count.rounds % 10 == 0:
            rig.clean(f"round {count.rounds}")
    rig.empty()
