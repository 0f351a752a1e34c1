# SPDX-License-Identifier: Apache-2.0
"""Signals that the tests were started to ignore, by nohup(1) or as a script's background job."""

from __future__ import annotations

import signal

IGNORED_BY_OTHERS = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM)


def _do_nothing(_number: int, _frame: object) -> None:
    return


def keep_from_children() -> None:
    """Ignore such signals here, and do not hand that on: execve(2) resets those with a handler only.

    The tests' commands are then started as from a terminal, and nohup still does its work for the tests.
    """
    for number in IGNORED_BY_OTHERS:
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, _do_nothing)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
