# SPDX-License-Identifier: Apache-2.0
"""Packed images: the same tree gives the same bytes, and what was in the layers is in the file system."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from hpcpod.images.stores.intact import sha256_of
from tests.integration.pod.conftest import wait_for
from tests.integration.site.conftest import ACCOUNT, FIRST_USER, FORMS, Site, tiny
from tests.testbed import layouts

pytestmark = pytest.mark.needs("root", "plain", "kernel-images")

PACKED = FORMS[1:]
LONG = b"l" * 250
TIMES = {b"old": 0, b"then": 1_000_000_000, b"late": 2**31 + 5}


def varied(site: Site) -> str:
    """An image with something of all that a packed one must keep."""
    parts = [
        layouts.directory(b".", 0o755, mtime=5),
        layouts.directory(b"d", 0o750, mtime=77),
        layouts.directory(b"sticky", 0o1777, mtime=78),
        layouts.directory(b"none", 0, mtime=79),
        layouts.file(b"none/f", b"below", mode=0o600),
        layouts.file(b"d/second", b"twice", mode=0o640),
        layouts.hardlink(b"d/again", b"d/second"),
        layouts.symlink(b"d/up", b"../d/second"),
        layouts.symlink(b"broken", b"/" + b"x" * 90),
        layouts.file(b"zero", b"", mode=0),
        layouts.file(b"closed", b"closed", mode=0),
        layouts.file(b"program", b"#!/bin/sh\n", mode=0o755),
        layouts.file(b"private", b"p", mode=0o600),
        layouts.file(b"runs", b"r", mode=0o711),
        layouts.pax({b"path": LONG}) + layouts.file(b"x", b"long"),
        layouts.file(b"b\xff\xe4r", b"no text"),
        *(layouts.file(name, name, mtime=when) for name, when in TIMES.items()),
        layouts.file(b"big", b"0123456789abcdef" * 20_000),
    ]
    return f"oci:{layouts.write_layout(site.base / 'varied', layouts.image(b''.join(parts)))}"


def look(root: Path) -> dict[str, tuple[object, ...]]:
    """All that is to be kept."""
    found: dict[str, tuple[object, ...]] = {}
    numbers: dict[int, int] = {}
    for path in (root, *sorted(root.rglob("*"))):
        status = path.lstat()
        what: object = os.readlink(path) if path.is_symlink() else path.is_file() and path.read_bytes()
        same = (
            numbers.setdefault(status.st_ino, len(numbers))
            if status.st_nlink > 1 and not path.is_dir()
            else -1
        )
        mode = stat.filemode(status.st_mode)
        found[os.fsdecode(bytes(path.relative_to(root)))] = (mode, int(status.st_mtime), what, same >= 0)
    return found


@pytest.mark.parametrize("form", PACKED)
def test_the_tree_is_kept(site: Site, form: str) -> None:
    """Compared with the tree that is in the store when it is not packed."""
    reference = varied(site)
    tree = look(Path(site.out("image", "mount", "--rootfs=dir", "--lease=a", reference)))
    place = Path(site.out("image", "mount", f"--rootfs={form}", "--lease=a", reference))
    packed = look(place)
    tree["sticky"] = ("drwxrwxrwt", *tree["sticky"][1:])  # a directory in the store loses it: all share it
    assert packed == tree
    assert {path.lstat().st_uid for path in place.rglob("*")} == {0}
    assert packed["d/second"][3] and packed["d/again"][3]
    assert [packed[os.fsdecode(name)][1] for name in TIMES] == list(TIMES.values())
    site.out("image", "umount", "--lease=a", "--all")


@pytest.mark.parametrize("form", FORMS)
def test_users_can_read_every_file_of_a_shared_image(site: Site, form: str) -> None:
    """Who may start an image may read it; who may run a program of it is as the image says."""
    place = site.out("image", "mount", f"--rootfs={form}", varied(site))
    user = site.account(FIRST_USER)
    for name, content in (("closed", "closed"), ("private", "p"), ("none/f", "below"), ("d/second", "twice")):
        assert user.run(["cat", f"{place}/{name}"]).stdout == content, name
    modes = {
        name: Path(place, name).stat().st_mode & 0o777 for name in ("closed", "private", "program", "runs")
    }
    assert modes == {"closed": 0o444, "private": 0o644, "program": 0o755, "runs": 0o755}
    site.out("image", "umount", "--all")


@pytest.mark.parametrize("form", PACKED)
def test_the_same_bytes_again(site: Site, form: str) -> None:
    """Whoever packs, when and where: by the account in the site's store, by a user."""
    reference = varied(site)
    sums = set()
    for _ in range(2):
        site.out("image", "pull", "--site", f"--rootfs={form}", reference)
        (file,) = (site.store / "images").glob(f"*/rootfs.{form}")
        sums.add(digest_of(file))
        site.out("image", "rm", "--site", reference)
    assert len(sums) == 1


def digest_of(file: Path) -> str:
    with file.open("rb") as opened:
        return sha256_of(opened.fileno())


def slow(site: Site, form: str) -> str:
    """An image that takes a moment to pack."""
    return tiny(site, f"slow-{form}", data=os.urandom(1 << 20), count=60)


def packers(site: Site, form: str) -> list[int]:
    program = {"squashfs": "mksquashfs", "erofs": "mkfs.erofs"}[form]
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words = (path / "cmdline").read_bytes()
        except OSError:
            continue
        if program.encode() in words.split(b"\0")[0] and str(site.store).encode() in words:
            found.append(int(path.name))
    return found


@pytest.mark.parametrize("form", PACKED)
def test_a_packer_that_is_killed(site: Site, form: str) -> None:
    pulling = site.start("image", "pull", "--site", f"--rootfs={form}", reference := slow(site, form))
    wait_for(lambda: packers(site, form) or pulling.poll() is not None, "the packer runs", 60)
    for pid in packers(site, form):
        os.kill(pid, signal.SIGKILL)
    _, errors = pulling.communicate(timeout=60)
    assert pulling.returncode == 125 and "exit status -9: said nothing [store-unusable]" in errors, errors
    assert site.entries() == []
    site.assert_idle()
    site.out("image", "pull", "--site", f"--rootfs={form}", reference)


@pytest.mark.parametrize("form", PACKED)
def test_root_is_killed_while_its_account_packs(site: Site, form: str) -> None:
    """Then the account's process dies, and the packer; the next command removes what they made."""
    reference = slow(site, form)
    pulling = site.start("image", "pull", "--site", f"--rootfs={form}", reference)
    wait_for(lambda: packers(site, form) or pulling.poll() is not None, "the packer runs", 60)
    pulling.kill()
    pulling.communicate()
    wait_for(lambda: not packers(site, form), "the packer is gone")
    assert os.listdir(site.store / "tmp") != []
    assert site.out("image", "gc", "--site") == "no image had to go; removed 1 leftover"
    site.assert_idle()
    site.out("image", "pull", "--site", f"--rootfs={form}", reference)
    site.assert_idle()


def test_the_packer_has_nothing_of_roots(site: Site) -> None:
    """Not its privileges, its files or its environment."""
    reference = slow(site, "squashfs")
    pulling = site.start("image", "pull", "--site", "--rootfs=squashfs", reference)
    wait_for(lambda: packers(site, "squashfs") or pulling.poll() is not None, "the packer runs", 60)
    pid = packers(site, "squashfs")[0]
    os.kill(pid, signal.SIGSTOP)
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        environment = Path(f"/proc/{pid}/environ").read_bytes()
        files = {os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir()}
    finally:
        os.kill(pid, signal.SIGCONT)
    assert f"Uid:\t{ACCOUNT}\t{ACCOUNT}\t{ACCOUNT}\t{ACCOUNT}" in status
    assert "NoNewPrivs:\t1" in status and "CapEff:\t0000000000000000" in status and "Groups:\t \n" in status
    assert b"HPCPOD" not in environment
    assert not any(str(site.runtime) in file for file in files), files
    assert pulling.wait(60) == 0


def test_a_command_in_the_current_directory_is_not_run(site: Site) -> None:
    (site.base / "mkfs.erofs").write_text("#!/bin/sh\ntouch /tmp/hpcpod-was-here\n")
    (site.base / "mkfs.erofs").chmod(0o755)
    env = {"PATH": f"{site.base}:/usr/bin:/bin"}
    command = [sys.executable, "-P", "-m", "hpcpod", "image", "pull", "--site", tiny(site, "one")]
    done = subprocess.run(
        command, cwd=site.base, env={**site.account(0).environment(site.environment()), **env}, check=False
    )
    assert done.returncode == 0 and not Path("/tmp/hpcpod-was-here").exists()
