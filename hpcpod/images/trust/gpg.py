# SPDX-License-Identifier: Apache-2.0
"""OpenPGP signatures, checked by the program gpg in a home of its own.

Each check has a new directory on memory with nothing in it but the keys of one rule, an environment without
anything of the user's, no agent and no network: what the user's own key ring, options or web of trust say
has no part in it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile

from hpcpod.errors import TrustUnusable
from hpcpod.frozen import frozen
from hpcpod.images.trust.gpgstatus import Outcome, parse_status
from hpcpod.images.trust.keys import Key
from hpcpod.log import shown

TYPE_CHECKING = False  # importing typing would be a sixth of a preparation's start (docs/adr/0005)
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import TracebackType
    from typing import Self

SECONDS = 20.0
"""For one run of gpg, beside the time that the data take."""
SLOWEST = 10 << 20
"""Bytes a second that data are read with at least."""
TEXT_MAX = 4 << 20
"""Bytes of a signed text."""
_STATUS_MAX = 1 << 16
_PATH = "/usr/local/bin:/usr/bin:/bin"
_OPTIONS = (
    *("--batch", "--no-tty", "--no-options", "--no-autostart", "--disable-dirmngr", "--no-auto-key-retrieve"),
    *("--no-auto-key-locate", "--no-auto-check-trustdb", "--trust-model=always", "--lock-never"),
    *("--no-permission-warning", "--quiet", "--status-fd=1"),
)
_BINARY, _TEXT = ("00",), ("00", "01")
"""Classes of signatures: over binary data, over a text (RFC 4880, section 5.2.1)."""


@frozen
class Listed:
    """A key as gpg sees it.  name: its first user id.  until: when it expires, 0 for never.

    state: ``""`` for one that can be used, else ``expired``, ``revoked``, ``not valid``, ``not for signing``.
    """

    fingerprint: str
    name: str
    until: int
    state: str


def gpg_program() -> str:
    """Path of gpg in the system's directories; empty where it is not installed."""
    return shutil.which("gpg", path=_PATH) or ""


class Home:
    """A directory for gpg with these keys in it, and no others.  A context manager.

    now: seconds since 1970 at which keys and signatures are judged.  Raises TrustUnusable where there is no
    gpg, or where it cannot read a key.
    """

    def __init__(self, keys: Iterable[Key], now: int) -> None:
        program = gpg_program()
        if program is None:
            raise TrustUnusable("gpg: not installed; OpenPGP signatures are checked by it", hint=_HINT)
        self._program = program
        self._now = now
        self._path = _directory()
        self._texts = 0
        self._listed: dict[str, tuple[Listed, dict[str, int]]] = {}
        try:
            self._import(tuple(keys))
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove the directory."""
        self.close()

    def close(self) -> None:
        """Remove the directory."""
        shutil.rmtree(self._path, ignore_errors=True)

    def message(self, message: bytes, *, clear: bool = False) -> tuple[Outcome, bytes]:
        """Check a message with a signature in it, and the text that was signed (empty unless it is good).

        clear: signed as a text, readable (RFC 4880, section 7).
        """
        self._texts += 1  # never the text of another message
        path = f"{self._path}/text-{self._texts}"
        limit = f"--max-output={TEXT_MAX + 1}"
        status = self._run(("--output", path, limit, "--decrypt"), message)
        outcome = self._judged(parse_status(status, _TEXT if clear else _BINARY))
        if not outcome.good:
            return outcome, b""
        with open(path, "rb") as file:
            text = file.read(TEXT_MAX + 1)
        if len(text) > TEXT_MAX:
            return Outcome(False, f"its text is longer than {TEXT_MAX} bytes"), b""
        return outcome, text

    def detached(
        self, signature: bytes, feed: Callable[[Callable[[bytes], object]], None], size: int
    ) -> Outcome:
        """Check a signature over data that lie apart.

        feed: is called once with a function that takes the data, piece by piece.  size: of the data, bytes.
        """
        path = f"{self._path}/signature"
        with open(path, "wb") as file:
            file.write(signature)
        seconds = SECONDS + size / SLOWEST
        process = self._start(("--verify", path, "-"), subprocess.PIPE)
        watch = _Watch(process, seconds)
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                feed(process.stdin.write)
                process.stdin.close()
            except BrokenPipeError:
                pass  # gpg has seen enough: its status says of what
            status = process.stdout.read(_STATUS_MAX)
        finally:
            watch.end()
        return self._judged(parse_status(status, _BINARY))

    def listed(self) -> tuple[Listed, ...]:
        """The primary keys."""
        return tuple(key for key, _ in self._listed.values())

    def _judged(self, outcome: Outcome) -> Outcome:
        """The outcome, with the time when the first of signature and keys expires."""
        if not outcome.good:
            return outcome
        entry = self._listed.get(outcome.fingerprint)
        if entry is None or entry[0].state or outcome.signer not in entry[1]:
            state = entry[0].state if entry else ""
            return Outcome(False, f"by a key that is {state or 'not asked for'}", outcome.fingerprint)
        times = [time for time in (outcome.until, entry[0].until, entry[1][outcome.signer]) if time]
        return Outcome(True, outcome.found, outcome.fingerprint, outcome.signer, min(times, default=0))

    def _import(self, keys: tuple[Key, ...]) -> None:
        self._run(("--import",), b"".join(key.data for key in keys))
        listing = self._run(("--with-colons", "--fixed-list-mode", "--list-keys"), b"")
        self._listed = parse_listing(listing.decode("utf-8", "replace"))
        if keys and not any(key.fingerprint in self._listed for key in keys):
            # Of several, one that is no good hinders no other; what it signs is by an unknown key.
            raise TrustUnusable(
                f"key {keys[0].origin}: gpg does not take {keys[0].fingerprint}",
                hint="made in the future, without a user id that it signed itself, or unknown to this gpg",
            )

    def export(self, fingerprint: str) -> bytes:
        """The key alone, binary."""
        path = f"{self._path}/exported"
        self._run(("--yes", "--output", path, "--export", fingerprint), b"")
        with open(path, "rb") as file:
            return file.read()

    def _start(self, words: tuple[str, ...], stdin: int) -> subprocess.Popen[bytes]:
        clock = f"--faked-system-time={self._now}!"
        return subprocess.Popen(
            [self._program, *_OPTIONS, f"--homedir={self._path}", clock, *words],
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={"PATH": _PATH, "LANG": "C.UTF-8", "HOME": self._path},
            cwd="/",
        )

    def _run(self, words: tuple[str, ...], data: bytes) -> bytes:
        """What gpg writes to its standard output: status lines, and a listing if it was asked for one."""
        process = self._start(words, subprocess.PIPE)
        try:
            return process.communicate(data, timeout=SECONDS)[0]
        except subprocess.TimeoutExpired:
            raise TrustUnusable(
                f"gpg: no answer in {SECONDS:.0f} s", hint="is the machine overloaded?"
            ) from None
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()


_HINT = "apt-get install gnupg, or dnf install gnupg2"


class _Watch:
    """Ends a process that takes too long."""

    def __init__(self, process: subprocess.Popen[bytes], seconds: float) -> None:
        import threading

        self._process = process
        self._timer = threading.Timer(seconds, process.kill)
        self._timer.start()

    def end(self) -> None:
        """The process is done, or is of no more use."""
        self._timer.cancel()
        if self._process.poll() is None:
            self._process.kill()
        if self._process.stdin is not None:
            import contextlib

            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()


def _directory() -> str:
    """A new directory, on memory where there is such a place, mode 0700."""
    for place in ("/dev/shm", "/run/shm"):
        if os.access(place, os.W_OK | os.X_OK):
            return tempfile.mkdtemp(prefix="hpcpod-gpg-", dir=place)
    return tempfile.mkdtemp(prefix="hpcpod-gpg-")


def parse_listing(text: str) -> dict[str, tuple[Listed, dict[str, int]]]:
    """Keys by fingerprint, with the fingerprints that can sign for each and when those expire.

    GnuPG, doc/DETAILS, "Format of the colon listings".
    """
    found: dict[str, tuple[Listed, dict[str, int]]] = {}
    current, record = "", [""]
    for line in text.split("\n"):
        row = line.split(":")
        if row[0] in ("pub", "sub") and len(row) > 11:
            record = row
        elif row[0] == "fpr" and len(row) > 9 and record[0] == "pub":
            current = row[9]
            state = _STATES.get(record[1][:1], "" if "S" in record[11] else "not for signing")
            found[current] = Listed(current, "", _number(record[6]), state), {}
            if not state:
                found[current][1][current] = _number(record[6])
            record = [""]
        elif row[0] == "fpr" and len(row) > 9 and record[0] == "sub" and current:
            if record[1][:1] not in _STATES:
                found[current][1][row[9]] = _number(record[6])
            record = [""]
        elif row[0] == "uid" and len(row) > 9 and current and not found[current][0].name:
            key = found[current][0]
            found[current] = Listed(key.fingerprint, shown(row[9]), key.until, key.state), found[current][1]
    return found


_STATES = {"e": "expired", "r": "revoked", "i": "not valid", "d": "disabled", "n": "not valid"}


def _number(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() else 0
