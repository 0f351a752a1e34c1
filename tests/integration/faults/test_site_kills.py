# SPDX-License-Identifier: Apache-2.0
"""kill -9 at each state change of what fills the site's store: root, and the account that works for it."""

from __future__ import annotations

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
