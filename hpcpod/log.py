# SPDX-License-Identifier: Apache-2.0
"""What people see on stderr: names made printable, and progress of long work.

Standard output belongs to the user's program; nothing here writes to it.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable

TYPE_CHECKING = False  # importing typing would be a sixth of a preparation's start (docs/adr/0005)
if TYPE_CHECKING:
    from typing import Protocol, TextIO
else:
    Protocol = object

QUIET_SECONDS = 1.0
"""Work that ends sooner shows nothing."""
TTY_SECONDS = 0.1
HEARTBEAT_SECONDS = 5.0
BAR_WIDTH = 30
SHOWN_MAX = 200
UNBOUNDED = 1 << 62
"""Bytes of a disk that nobody counts."""
UNIT = 1024


def shown(name: str | bytes) -> str:
    """The name with everything but printable characters escaped, shortened when very long.

    Names come from images and may hold terminal escapes, newlines and bidirectional marks.
    """
    text = os.fsdecode(name)
    if len(text) > SHOWN_MAX:
        text = text[: SHOWN_MAX - 3] + "..."
    return "".join(c if c.isprintable() and c != "\\" else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    if character == "\\":
        return "\\\\"
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")


def size(count: float) -> str:
    """A number of bytes for people: ``145.2 MiB``, in powers of 1024, as sizes are read (sizes.py)."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < UNIT:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= UNIT
    return f"{count:.1f} TiB"


def counted(number: int, what: str) -> str:
    """``1 image``, ``2 images``."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


class Progress(Protocol):
    """Told about long work; may be called from any thread."""

    def begin(self, label: str, total: int) -> None:
        """Work of total bytes starts (0: unknown)."""

    def advance(self, count: int) -> None:
        """Count more bytes are done."""

    def took(self, total: int) -> int:
        """The work has taken so many bytes of the disk by now, or is about to; how many more it may take.

        Raises what is to end the work when these are too many.
        """

    def note(self, text: str) -> None:
        """A line worth reading even when the work is short."""

    def end(self) -> None:
        """The work that begin() announced is over, well or not."""


class Silent:
    """A Progress that says nothing."""

    def begin(self, label: str, total: int) -> None:
        """Say nothing."""

    def advance(self, count: int) -> None:
        """Say nothing."""

    def took(self, total: int) -> int:
        """Let it take as much as it likes."""
        return UNBOUNDED

    def note(self, text: str) -> None:
        """Say nothing."""

    def end(self) -> None:
        """Say nothing."""


class StderrProgress:
    """A bar on a terminal, a line every few seconds elsewhere, nothing for work shorter than a second."""

    def __init__(
        self,
        prefix: str = "hpcpod",
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._prefix = prefix
        self._stream = sys.stderr if stream is None else stream
        self._clock = clock
        self._tty = self._stream.isatty()
        self._label = ""
        self._total = 0
        self._done = 0
        self._start = 0.0
        self._next = 0.0
        self._drawn = False

    def begin(self, label: str, total: int) -> None:
        """Work of total bytes starts (0: unknown)."""
        self._label, self._total, self._done, self._drawn = label, total, 0, False
        self._start = self._clock()
        self._next = self._start + QUIET_SECONDS

    def advance(self, count: int) -> None:
        """Count more bytes are done; draws when it is time to."""
        self._done += count
        now = self._clock()
        if now < self._next:
            return
        self._next = now + (TTY_SECONDS if self._tty else HEARTBEAT_SECONDS)
        text = self._text(now)
        self._stream.write(f"\r{text}\x1b[K" if self._tty else f"{text}\n")
        self._stream.flush()
        self._drawn = True

    def took(self, total: int) -> int:
        """Let it take as much as it likes."""
        return UNBOUNDED

    def _text(self, now: float) -> str:
        elapsed = now - self._start
        if not self._total and not self._done:  # waiting, not working
            return f"{self._prefix}: {self._label}, {elapsed:.0f} s"
        rate = size(self._done / elapsed) + "/s" if elapsed > 0 else ""
        if not self._total:
            return f"{self._prefix}: {self._label}: {size(self._done)}, {elapsed:.0f} s, {rate}"
        part = min(1.0, self._done / self._total)
        amount = f"{size(self._done)} of {size(self._total)}, {elapsed:.0f} s, {rate}"
        if not self._tty:
            return f"{self._prefix}: {self._label}: {part:.0%}, {amount}"
        filled = "#" * int(part * BAR_WIDTH)
        return f"{self._prefix}: {self._label} [{filled:<{BAR_WIDTH}}] {part:4.0%}  {amount}"

    def note(self, text: str) -> None:
        """Write one line now."""
        clear = "\r\x1b[K" if self._tty and self._drawn else ""
        self._stream.write(f"{clear}{self._prefix}: {text}\n")
        self._stream.flush()

    def end(self) -> None:
        """Remove the bar; what was done is the caller's to say."""
        if self._drawn and self._tty:
            self._stream.write("\r\x1b[K")
            self._stream.flush()
        self._drawn = False
