# SPDX-License-Identifier: Apache-2.0
"""Signals that were ignored when a command started: which stay so, and which must not."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import signal, subprocess
for name in ("SIGCHLD", "SIGHUP", "SIGTERM"):
    signal.signal(getattr(signal, name), signal.SIG_IGN)
signal.signal(signal.SIGINT, signal.default_int_handler)
from hpcpod.launcher.signals import clear_up_on_signals
clear_up_on_signals()
print(subprocess.run(["false"]).returncode)
print(*(signal.getsignal(s) is signal.SIG_IGN for s in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT)))
"""


def test_ignored_signals_stay_ignored_but_statuses_are_not_lost() -> None:
    done = subprocess.run([sys.executable, "-P", "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert done.stdout == "1\nTrue True False\n"
