# SPDX-License-Identifier: Apache-2.0
"""Tests that run behind nohup(1) start their commands as from a terminal."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import os, signal, subprocess, sys
sys.path.append(sys.argv[1])
for name in ("HUP", "INT", "QUIT", "CHLD"):
    signal.signal(getattr(signal, f"SIG{name}"), signal.SIG_IGN)
from tests.testbed.signals import keep_from_children
keep_from_children()
os.kill(os.getpid(), signal.SIGHUP)
os.kill(os.getpid(), signal.SIGINT)
print(subprocess.run(["grep", "SigIgn", "/proc/self/status"], capture_output=True, text=True).stdout)
"""


def test_ignored_signals_are_not_handed_on() -> None:
    root = str(Path(__file__).parents[3])
    done = subprocess.run(
        [sys.executable, "-P", "-c", PROGRAM, root], capture_output=True, text=True, check=True
    )
    mask = int(done.stdout.split()[1], 16)
    numbers = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGCHLD)
    assert not any(mask >> number - 1 & 1 for number in numbers)
