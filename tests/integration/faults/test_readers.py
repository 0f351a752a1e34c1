# SPDX-License-Identifier: Apache-2.0
"""Who reads the store while others pull, remove and die: an image is there whole, or not at all."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import pytest

from tests.integration.faults.conftest import forms
from tests.testbed.crashes import Rig, difference, entry
from tests.testbed.injector import Running

pytestmark = pytest.mark.needs("gcc", "plain")

COMMANDS = 60
"""Commands that change the store while it is read."""


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return None


def look(rig: Rig) -> int:
    """Read each image of the store that stays where it is meanwhile; how many there were."""
    whole = 0
    for name in rig.names():
        path = rig.store / "images" / name
        before = _inode(path)
        try:
            found = entry(path)
        except (OSError, json.JSONDecodeError):
            found = {}
        if before is not None and before == _inode(path):
            wrong = difference(found, rig.expected(name))
            assert not wrong, f"{name} was there, but not whole:\n{wrong}"
            whole += 1
    return whole


def writers(rig: Rig, dice: random.Random) -> Running:
    """Start a command that changes the store; one of three is killed on its way."""
    reference = dice.choice(list(rig.references.values()))
    words = dice.choice(
        [
            ["image", "pull", f"--rootfs={dice.choice(forms())}", reference],
            ["image", "pull", "--rootfs=dir", reference],
            ["image", "rm", reference],
            ["image", "gc", "--all"],
        ]
    )
    rules = [f"changes:{dice.randint(1, 60)}:kill"] if dice.random() < 0.33 else []
    return rig.start(words, rules)


def test_images_are_there_whole_or_not_at_all(rig: Rig) -> None:
    rig.reset()
    dice = random.Random(1)
    running: list[Running] = []
    seen = 0
    for _ in range(COMMANDS):
        running.append(writers(rig, dice))
        for _ in range(3):
            seen += look(rig)
        if len(running) > 2:
            running.pop(0).result()
    for each in running:
        each.result()
    assert seen > COMMANDS // 2
    rig.empty()


def test_a_command_that_lists_shows_what_is_whole(rig: Rig) -> None:
    """`image list` at each change of a pull: the image, or nothing, never an error."""
    rig.reset()
    words = ["image", "pull", "--rootfs=dir", rig.references["two"]]
    shown = set()
    for number in range(1, 1000):
        rig.reset()
        running = rig.start(words, [f"changes:{number}:hold"])
        if running.held() is None:
            break
        listed = json.loads(rig.run(["image", "list", "--json"]).check().output)
        shown.add(len(listed))
        for each in listed:
            assert os.path.isdir(each["rootfs"]) and rig.names()
            rig.assert_whole()
        running.go_on()
        running.result().check()
    assert shown == {0, 1}
