# SPDX-License-Identifier: Apache-2.0
"""``hpcpod image unpack`` as a command, and everything around it watched: nothing but DEST may change."""

from __future__ import annotations

import os
import re
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.conftest import PACKAGES, Account
from tests.testbed.layouts import Image, write_layout
from tests.testbed.places import scan

SECONDS = 60.0
MEMORY = 200 << 20
"""Resident bytes that no image may make the command exceed."""
ADDRESSES = 2 << 30
"""Bytes of address space that the command is given."""
_MEASURE = """
import os, sys
child = os.fork()
if not child:
    os.execvp(sys.argv[1], sys.argv[1:])
_, status, usage = os.wait4(child, 0)
os.write(2, b"%d" % usage.ru_maxrss)
os._exit(os.waitstatus_to_exitcode(status))
"""
"""A process's peak is at least that of the one it was started from (getrusage(2)): this one is small."""
_SAID = re.compile(r"hpcpod: [^\n]*\[([a-z-]+)\]\n(hint: [^\n]*\n)?")


@dataclass(frozen=True)
class Ended:
    """How the command ended.  slug: None when it was done."""

    status: int
    slug: str | None
    said: str
    peak: int
    seconds: float


def _look(path: Path) -> dict[str, Any]:
    """A directory and what is below it, its own mode included."""
    return {".": path.lstat().st_mode, **scan(path)}


class Unpacking:
    """``HOME/place`` with a canary beside DEST (``HOME/place/out``), and another in HOME."""

    def __init__(self, account: Account) -> None:
        self.account = account
        self.home = account.home
        self.place = account.home / "place"
        self.target = self.place / "out"
        self.inputs = account.home.parent / "inputs"
        self.inputs.mkdir()
        for canary in (self.place / "canary", account.home / "canary"):
            (canary / "directory").mkdir(parents=True)
            (canary / "file").write_text("alive")
            (canary / "twin").hardlink_to(canary / "file")
            (canary / "link").symlink_to("file")
            (canary / "directory").chmod(0o711)
        (account.home / "tmp").mkdir()
        for path in (account.home, *account.home.rglob("*")):
            os.chown(path, account.uid, account.uid, follow_symlinks=False)

    def layout(self, image: Image | Mapping[str, Image], **more: Any) -> str:
        """Write a layout outside HOME; returns the reference."""
        return f"oci:{write_layout(self.inputs / f'layout{len(list(self.inputs.iterdir()))}', image, **more)}"

    def limited(self, **limits: int) -> dict[str, str]:
        """The environment that names a configuration with these limits."""
        path = self.inputs / "hpcpod.toml"
        path.write_text("[limits]\n" + "".join(f"{name} = {value}\n" for name, value in limits.items()))
        path.chmod(0o644)
        return {"HPCPOD_CONFIG": str(path)}

    def start(
        self,
        reference: str,
        destination: str | None = None,
        *,
        options: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        before: Sequence[str] = (),
        **more: Any,
    ) -> subprocess.Popen[str]:
        """Start the command; before: words in front of it."""
        words = [sys.executable, "-m", "hpcpod", "image", "unpack", "--platform", "linux/amd64", *options]
        given = {"PYTHONPATH": PACKAGES, "TMPDIR": str(self.home / "tmp"), **(env or {})}
        argv = [*before, *words, reference, str(self.target) if destination is None else destination]
        return self.account.start(argv, env=given, stdout=subprocess.DEVNULL, **more)

    def run(self, reference: str, destination: str | None = None, *, files: int = 1024, **more: Any) -> Ended:
        """Run it, and check what must be so whatever happens.  files: RLIMIT_NOFILE."""
        watched = self._watched()
        with tempfile.TemporaryFile("w+") as said:
            started = time.monotonic()
            measured = (sys.executable, "-I", "-S", "-c", _MEASURE)
            bounds = ("prlimit", f"--as={ADDRESSES}", f"--nofile={files}", *more.pop("before", ()))
            process = self.start(
                reference,
                destination,
                stderr=said,
                before=(*measured, *bounds),
                start_new_session=True,
                **more,
            )
            timer = threading.Timer(SECONDS, os.killpg, [process.pid, signal.SIGKILL])
            timer.start()
            process.wait()
            timer.cancel()
            seconds = time.monotonic() - started
            said.seek(0)
            *lines, peak = said.read().split("\n")
            text = "".join(f"{line}\n" for line in lines)
        match = _SAID.fullmatch(text)
        slug = match.group(1) if match and process.returncode else None
        ended = Ended(process.returncode, slug, text, int(peak) * 1024, seconds)
        assert ended.seconds < SECONDS, "no end"
        assert self._watched() == watched
        self._check_said(ended)
        return ended

    def _check_said(self, ended: Ended) -> None:
        assert all(line.isprintable() for line in ended.said.splitlines()), repr(ended.said)
        assert len(ended.said) < 4000
        if ended.status:
            assert ended.status == 125, ended.said
            assert ended.slug is not None, ended.said
            assert ended.slug != "internal", ended.said

    def _watched(self) -> dict[str, Any]:
        """HOME without DEST, and the inputs; and that no store was made."""
        assert not self.account.store.exists()
        left = {
            str(path): _look(path)
            for top in (self.home, self.inputs, self.place)
            for path in top.iterdir()
            if path.is_dir() and not path.is_symlink() and path not in (self.place, self.target)
        }
        names = {str(top): sorted(set(os.listdir(top)) - {"out"}) for top in (self.home, self.place)}
        return left | names

    def refused(self, reference: str, destination: str | None = None, **more: Any) -> Ended:
        """Run it; the image must be refused, and no DEST be left."""
        ended = self.run(reference, destination, **more)
        assert ended.status == 125, f"accepted: {scan(self.target)}"
        assert ended.slug and ended.slug.startswith("image-"), ended.said
        assert not os.path.lexists(self.target)
        assert ended.peak < MEMORY, ended.peak
        return ended

    def tree(self, reference: str, destination: str | None = None, **more: Any) -> dict[str, tuple[Any, ...]]:
        """Run it; the image must be accepted.  Returns the tree, which holds only what it may."""
        ended = self.run(reference, destination, **more)
        assert ended.status == 0, ended.said
        assert ended.peak < MEMORY, ended.peak
        top = Path(more.get("cwd", "/")) / (destination or self.target)
        check_tree(top, self.account.uid)
        return scan(top)


def check_tree(top: Path, uid: int) -> None:
    """Files, directories and symlinks of the user; no set-ID bits, no extended attributes."""
    for path in (top, *top.rglob("*")):
        status = path.lstat()
        kind = stat.S_IFMT(status.st_mode)
        assert kind in (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK), path
        assert kind == stat.S_IFLNK or not status.st_mode & (stat.S_ISUID | stat.S_ISGID), path
        assert (status.st_uid, status.st_gid) == (uid, uid), path
        assert os.listxattr(path, follow_symlinks=False) == [], path
