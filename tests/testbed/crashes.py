# SPDX-License-Identifier: Apache-2.0
"""A store that commands are killed in, and what must be so at every moment, and after every repair.

At every moment: what has an image's name is that image, bit for bit.  After `hpcpod gc` and `image gc`: no
half-made or half-removed thing, no lock held, no file that nobody will look for.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests import needs
from tests.conftest import Account, remove_tree
from tests.testbed.injector import Commands, Run, Running
from tests.testbed.layouts import Image, Layer, directory, file, hardlink, symlink, write_layout

Fingerprint = dict[str, tuple[Any, ...]]

_TEXT = bytes(range(256))
_LOWER = (
    directory(b"./")
    + directory(b"bin")
    + file(b"bin/tool", _TEXT * 700, mode=0o755)
    + hardlink(b"bin/other", b"bin/tool")
    + symlink(b"bin/sh", b"tool")
    + directory(b"etc", mode=0o700, mtime=1_111_111_111)
    + file(b"etc/old", b"old")
    + file(b"etc/gone", b"gone")
    + directory(b"locked", mode=0o555)
    + file(b"locked/file", b"secret", mode=0o400)
    + directory(b"hidden")
    + file(b"hidden/below", b"x")
)
_UPPER = (
    file(b"etc/.wh.gone")
    + file(b"etc/old", b"new", mode=0o640, mtime=1_222_222_222)
    + directory(b"hidden")
    + file(b"hidden/.wh..wh..opq")
    + file(b"hidden/above", b"y")
    + directory(b"empty", mode=0o711)
)
IMAGES = {
    "one": Image([Layer(_LOWER), Layer(_UPPER, "zstd")]),
    "two": Image([Layer(file(b"d/f", _TEXT * 30) + symlink(b"l", b"d/f"), "none")]),
}
"""What is pulled and unpacked.

one: each kind of thing that an unpacker does.  two: small, and its directories have no entries of their own.
"""

_AGED = ("locks", "verified")
"""Folders of the run-time directory whose small files are used again, and go when they are old."""

_OF_ENTRIES = ("", "entry-", "image-")
"""What comes before an entry's name in those folders."""

_VARIES = ("when", "seconds", "why", "reference", "seal")
"""Fields of meta.json that say when and how, not what."""


def fingerprint(top: Path) -> Fingerprint:
    """All that a tree is: types, modes, owners, times, contents, which names are one file, links' targets."""
    found: Fingerprint = {}
    first: dict[int, str] = {}
    for path in sorted([top, *top.rglob("*")]):
        status = path.lstat()
        name = str(path.relative_to(top))
        rest: Any = None
        if stat.S_ISLNK(status.st_mode):
            rest = os.readlink(path)
        elif stat.S_ISREG(status.st_mode):
            same = first.setdefault(status.st_ino, name)
            rest = (same, status.st_nlink, hashlib.sha256(path.read_bytes()).hexdigest())
        xattrs = tuple((key, os.getxattr(path, key)) for key in os.listxattr(path, follow_symlinks=False))
        owner = (status.st_uid, status.st_gid)
        found[name] = (stat.filemode(status.st_mode), owner, status.st_mtime_ns, rest, xattrs)
    return found


def difference(found: Fingerprint, expected: Fingerprint) -> str:
    """Names that differ, with both sides, for a person."""
    names = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
    return "\n".join(f"{name}: {found.get(name)}, expected {expected.get(name)}" for name in names)


def entry(path: Path) -> Fingerprint:
    """What an entry of the store holds: all of it that must be the same whenever it is made."""
    meta = json.loads((path / "meta.json").read_text())
    found: Fingerprint = {"meta": tuple((key, value) for key, value in meta.items() if key not in _VARIES)}
    for each in path.iterdir():
        if each.is_dir():
            found |= {f"{each.name}/{name}": value for name, value in fingerprint(each).items()}
        elif each.name not in ("meta.json", "pinned"):
            found[each.name] = (hashlib.sha256(each.read_bytes()).hexdigest(),)
    return found


class Rig:
    """An account's store on memory, two images to bring into it, and commands that can be killed."""

    def __init__(self, account: Account, base: Path, commands: Commands, *, site: bool = False) -> None:
        self.account = account
        self.base = base
        self.commands = commands
        self.site = ["--site"] if site else []
        self.store = base / "site" / "store" if site else account.store
        self.runtime = base / "site" / "run" if site else account.runtime
        self._env = {"HPCPOD_CONFIG": str(write_config(base))}
        self.out = account.home / "out"
        self.references = {name: f"oci:{base}/layouts/{name}" for name in IMAGES}
        self._entries: dict[str, Fingerprint] = {}
        self._trees: dict[str, Fingerprint] = {}

    def write_images(self) -> None:
        """Write the layouts, and note what unpacking each gives when nothing disturbs it."""
        for name, image in IMAGES.items():
            write_layout(self.base / "layouts" / name, image)
        for name in IMAGES:
            self.run(["image", "unpack", self.references[name], self.out]).check()
            self._trees[name] = fingerprint(self.out)
            remove_tree(self.out)

    def learn(self, words: Sequence[str]) -> None:
        """Run a command that nothing disturbs, and note the entries of the store after it as right."""
        self.run(words).check()
        for path in (self.store / "images").iterdir():
            self._entries[path.name] = entry(path)

    def run(self, words: Sequence[str | os.PathLike[str]], rules: Sequence[str] = (), **more: Any) -> Run:
        """Run ``hpcpod WORDS`` to its end."""
        return self.start(words, rules, **more).result()

    def start(
        self, words: Sequence[str | os.PathLike[str]], rules: Sequence[str] = (), **more: Any
    ) -> Running:
        """Start ``hpcpod WORDS``."""
        env = {**self._env, **more.pop("env", {})}
        return self.commands.start(words, rules, env=env, **more)

    def reset(self) -> None:
        """Take store, run-time directory and target away, as if nothing had ever been done."""
        for path in (self.store, self.runtime, self.account.runtime, self.out):
            if path.exists():
                remove_tree(path)

    def names(self) -> set[str]:
        """What has an image's name in the store."""
        images = self.store / "images"
        return {path.name for path in images.iterdir()} if images.exists() else set()

    def expected(self, name: str) -> Fingerprint:
        """What the entry of this name must hold."""
        return self._entries[name]

    def assert_whole(self, why: object = "") -> None:
        """What has a name, in the store or at the target, is all there and right.  At every moment."""
        for name in self.names():
            wrong = difference(entry(self.store / "images" / name), self.expected(name))
            assert not wrong, f"{name} differs:\n{wrong}\nafter {why}"

    def assert_unpacked(self, name: str, why: object = "") -> None:
        """The target is the tree of this image."""
        tree = difference(fingerprint(self.out), self._trees[name])
        assert not tree, f"{self.out} differs:\n{tree}\nafter {why}"

    def assert_is_one_of(self, path: Path, why: object = "") -> None:
        """The tree is that of one of the images."""
        assert fingerprint(path) in self._trees.values(), f"{path}: {sorted(fingerprint(path))}\nafter {why}"

    def clean(self, why: object = "") -> None:
        """Run the collectors, and look for what they should have taken."""
        self.run(["image", "gc", *self.site]).check()
        self.run(["gc"]).check()
        left = leftovers(self.store, self.runtime)
        if self.site:  # nobody ages what is root's
            names = [path.name for folder in _AGED for path in self.runtime.glob(f"{folder}/*")]
            known = {"entry-store", *(f"{kind}{name}" for name in self.names() for kind in _OF_ENTRIES)}
            left += [name for name in names if name not in known]
        left += [str(path) for path in self.account.home.iterdir() if path != self.out]
        assert not left, f"left: {left}\nafter {why}"

    def empty(self, why: object = "") -> None:
        """Remove all images; then nothing may be left but the store's own directories."""
        self.run(["image", "gc", "--all", *self.site]).check()
        self.clean(why)
        assert not self.names(), f"left: {self.names()}\nafter {why}"


def leftovers(store: Path, runtime: Path) -> list[str]:
    """What lies in a store and a run-time directory that nobody will use."""
    known = {"version", "images", "tmp", "garbage", "unsigned"}
    left = [str(path) for path in store.iterdir() if path.name not in known] if store.exists() else []
    for name in ("tmp", "garbage"):
        left += [str(path) for path in (store / name).iterdir()] if (store / name).exists() else []
    if runtime.exists():
        left += [
            str(path)
            for path in runtime.rglob("*")
            if (path.is_symlink() or path.is_file()) and path.parent.name not in _AGED
        ]
        left += [f"locked: {path}" for path in runtime.glob("locks/*") if _is_locked(path)]
    return left


def _is_locked(path: Path) -> bool:
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def write_config(base: Path) -> Path:
    """Write a site's configuration that names no place but below `base`; where it is."""
    path, policy = base / "hpcpod.toml", base / "site" / "policy.json"
    path.write_text(
        f'[site]\nstore = "{base}/site/store"\nrun = "{base}/site/run"\naccount = {needs.PLAIN_UID}\n'
        f'[trust]\npolicy = "{policy}"\n'
    )
    policy.parent.mkdir(exist_ok=True)
    policy.write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
    for made in (path, policy):
        made.chmod(0o644)
    return path


def make_account(base: Path, uid: int, store: Path | None = None) -> Account:
    """An account below an existing directory, with nothing made yet but its home.

    store: where its store is to be; the parent is given to the user.
    """
    home = base / "home"
    home.mkdir(mode=0o755)
    for path in (base, home, *([store.parent] if store else [])):
        if os.geteuid() == 0:
            os.chown(path, uid, uid)
    return Account(uid, home, store or base / "store", base / "runtime")


def remove_base(base: Path) -> None:
    """Remove what make_account() began."""
    if os.geteuid() == 0:
        shutil.rmtree(base)
    else:
        remove_tree(base)
