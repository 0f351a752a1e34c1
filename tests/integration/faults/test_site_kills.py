# SPDX-License-Identifier: Apache-2.0
"""kill -9 at each state change of what fills the site's store: root, and the account that works for it."""

from __future__ import annotations

import os
import random

import pytest

from tests.integration.faults.conftest import MakeRig, learn
from tests.integration.faults.test_kill_sweep import Case, kills
from tests.testbed.crashes import Rig

pytestmark = pytest.mark.needs("gcc", "root", "plain", "kernel-images")

PULL = "image pull --site --rootfs=dir {two}"
CASES = [
    Case(PULL, changes=40),
    Case("image pull --site --rootfs=erofs {two}", changes=40, action="kill-one"),
    Case("image rm --site {two}", (PULL,)),
    Case("image gc --all --site", (PULL,)),
]


@pytest.fixture(scope="module")
def rig(make_rig: MakeRig) -> Rig:
    rig = make_rig(0, site=True)
    learn(rig, "erofs")
    return rig


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.action} {case.words}")
def test_kill_at_each_change(rig: Rig, case: Case) -> None:
    assert kills(rig, case) >= case.changes
    rig.empty()


COMMANDS = (
    "image pull --site --rootfs=dir {image}",
    "image pull --site --rootfs=erofs {image}",
    "image mount --rootfs=erofs {image}",
    "image umount --all",
    "image rm --site {image}",
    "image gc --site",
    "image gc --site --all",
)
ROUNDS = int(os.environ.get("HPCPOD_FAULT_ROUNDS", "500")) // 5
SEED = int(os.environ.get("HPCPOD_FAULT_SEED", "0")) or random.SystemRandom().getrandbits(32)


def test_random_kills(rig: Rig) -> None:
    """At any system call of any command, one after the other; what is in the store is whole all the time."""
    dice = random.Random(SEED)
    killed = 0
    for _ in range(ROUNDS):
        image = rig.references[dice.choice(list(rig.references))]
        words = dice.choice(COMMANDS).format(image=image).split()
        run = rig.run(words, [f"all:{int(10 ** dice.uniform(0, 4))}:{dice.choice(('kill', 'kill-one'))}"])
        why = f"seed {SEED}: {run}"
        rig.assert_whole(why)
        killed += bool(run.killed)
        if not run.fired[0]:
            assert run.status == 0 or "not in the store" in run.errors, why
        if dice.random() < 0.3:
            rig.run(["image", "mount", "--rootfs=erofs", image]).check()
            rig.run(["image", "umount", "--all"]).check()
            rig.clean(why)
    rig.run(["image", "umount", "--all"]).check()
    rig.empty(f"seed {SEED}")
    assert killed > ROUNDS // 3
