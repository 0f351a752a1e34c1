# SPDX-License-Identifier: Apache-2.0
"""Signals that end a command which makes things: it removes what is half-made first."""

from __future__ import annotations

import os
import signal

TYPE_CHECKING = False  # importing types would be part of every preparation's start (docs/adr/0005)
if TYPE_CHECKING:
    from types import FrameType

_DEFAULTS = {
    signal.SIGINT: signal.default_int_handler,
    signal.SIGTERM: signal.SIG_DFL,
    signal.SIGHUP: signal.SIG_DFL,
}


class Stopped(SystemExit):
    """A signal arrived.  Unhandled it ends the process, silently, with status 128 + number."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.number = number


_stopped: list[int] = []
"""The signal that is being obeyed."""


def _stop(number: int, _frame: FrameType | None) -> None:
    """Stop at the first; those that follow would interrupt the clearing up.

    Several come where a scheduler or a terminal tells the front and this process, and the front does, too.
    """
    if not _stopped:
        _stopped.append(number)
        raise Stopped(number)


def clear_up_on_signals() -> None:
    """Let SIGINT, SIGTERM and SIGHUP raise Stopped; one that is ignored (nohup(1)) or handled stays so.

    SIGCHLD is no such wish: who ignores it is told of no exit status (wait(2)), and subprocess makes 0 of
    that: a program that failed, or a signature that gpg refuses, would pass.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for number, default in _DEFAULTS.items():
        if signal.getsignal(number) is default:
            signal.signal(number, _stop)


def end_by(number: int) -> None:
    """End this process by the signal, so that whoever waits for it sees what ended it."""
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
