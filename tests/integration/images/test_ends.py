# SPDX-License-Identifier: Apache-2.0
"""How commands end that are interrupted, or cannot print: a line or none, no traceback, nothing left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest

from tests.conftest import PACKAGES, Account
from tests.testbed.layouts import directory, file, image, write_layout

HPCPOD = [sys.executable, "-m", "hpcpod"]
PYTHON = {"PYTHONPATH": PACKAGES}
FILES = 20000
SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


def interrupted(account: Account, words: list[str], number: signal.Signals) -> tuple[int, str]:
    """Exit status and messages of a command that gets the signal while it unpacks."""
    process = account.start(words, env=PYTHON)
    while not any(account.store.glob("tmp/*/rootfs/d/*")) and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(number)
    _, said = process.communicate(timeout=30)
    return process.returncode, said


@pytest.fixture
def slow(user: Account) -> str:
    """The reference of an image that takes a while to unpack."""
    tar = directory(b"d") + b"".join(file(b"d/%d" % number, b"x") for number in range(FILES))
    return f"oci:{write_layout(user.home / 'slow', image(tar))}"


def left(account: Account) -> list[str]:
    return [*os.listdir(account.store / "tmp"), *os.listdir(account.store / "images")]


@pytest.mark.parametrize("number", SIGNALS)
def test_pull(user: Account, slow: str, number: signal.Signals) -> None:
    words = [*HPCPOD, "image", "pull", "--platform", "linux/amd64", slow]
    status, said = interrupted(user, words, number)
    assert (status, "Traceback" in said, left(user)) == (128 + number, False, [])


@pytest.mark.parametrize("number", SIGNALS)
def test_prepare(user: Account, slow: str, number: signal.Signals) -> None:
    """It ends by the signal, which a shell calls 128 + number: the next rank takes its place."""
    record = user.home / "record"
    words = [
        sys.executable,
        "-m",
        "hpcpod.launcher.prepare",
        str(record),
        "s",
        "--platform=linux/amd64",
        slow,
    ]
    status, said = interrupted(user, words, number)
    assert (status, "Traceback" in said, left(user)) == (-number, False, [])
    assert not record.exists()


def test_prepare_says_what_it_did_not_foresee(user: Account) -> None:
    words = [sys.executable, "-m", "hpcpod.launcher.prepare"]
    done = user.run(words, env=PYTHON)
    assert (done.returncode, done.stderr.splitlines()) == (
        125,
        [
            "hpcpod: internal error: IndexError: list index out of range [internal]",
            "hint: run again with --debug and report it",
        ],
    )
    assert "Traceback" in user.run([*words, "--debug"], env=PYTHON).stderr


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("words", ["image list --json", "gc", "--help", "--version"])
def test_a_full_disk_for_output(user: Account, words: str, unbuffered: str) -> None:
    env = {**PYTHON, "PYTHONUNBUFFERED": unbuffered}
    with Path("/dev/full").open("w") as full:
        done = user.run(
            [*HPCPOD, *words.split()], env=env, capture_output=False, stdout=full, stderr=subprocess.PIPE
        )
        debug = user.run(
            [*HPCPOD, "--debug", *words.split()],
            env=env, capture_output=False, stdout=full, stderr=subprocess.PIPE,
        )  # fmt: skip
    assert done.stderr == "hpcpod: standard output: no space left on device [os-error]\n"
    assert done.returncode == 125
    assert "Traceback" in debug.stderr


def test_a_closed_pipe_for_output(user: Account) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = user.run([*HPCPOD, "gc"], env=PYTHON, capture_output=False, stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


def test_the_version_of_a_copy_that_is_not_installed(user: Account) -> None:
    """No mock: a Python that sees the package's directory, and no metadata for it."""
    (user.home / "copy").mkdir()
    (user.home / "copy" / "hpcpod").symlink_to(f"{PACKAGES}/hpcpod")
    (user.home / "copy" / "click").symlink_to(Path(click.__file__).parent)
    words = [sys.executable, "-S", "-m", "hpcpod", "--version"]
    done = user.run(words, env={"PYTHONPATH": str(user.home / "copy")})
    assert (done.returncode, done.stdout) == (0, "hpcpod unknown (not installed)\n"), done.stderr
