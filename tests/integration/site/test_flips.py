# SPDX-License-Identifier: Apache-2.0
"""One bit of a packed image flips, in each of its regions: an error with a name, never a wrong answer.

By FUSE for a user, by a loop device and from the file for root.  What the kernel checks itself: tests/vm.
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hpcpod.errors import HpcpodError, ImageDigestMismatch, StoreUnusable
from hpcpod.images.stores import intact, leaves
from hpcpod.images.stores.intact import USERS_HINT, compare
from hpcpod.images.stores.seal import sealed
from hpcpod.images.stores.store import StoredImage, stored_from
from tests.integration.site.conftest import FIRST_USER, Site, reseal, tiny

pytestmark = pytest.mark.needs("root", "plain", "userns", "overlay", "native", "fuse", "kernel-images")


def _inode_table(form: str, raw: bytes) -> int:
    """Where the first inodes are: squashfs's superblock names their table, EROFS's the block of the root."""
    if form == "squashfs":
        return int(struct.unpack_from("<Q", raw, 64)[0])
    (root,) = struct.unpack_from("<H", raw, 1024 + 14)
    (block,) = struct.unpack_from("<I", raw, 1024 + 40)
    return int(block * 4096 + root * 32)


REGIONS: dict[str, Callable[[str, bytes], int]] = {
    "superblock": lambda form, raw: 40 if form == "squashfs" else 1024 + 36,
    "inodes": lambda form, raw: _inode_table(form, raw) + 3,
    "data": lambda form, raw: len(raw) // 2,
    "tail": lambda form, raw: len(raw) - 1,
}


def flip(file: Path, at: int, bit: int = 0) -> None:
    """Flip a bit of a file, whose times do not tell: as a disk does it."""
    before = file.stat()
    with file.open("r+b") as opened:
        opened.seek(at)
        (byte,) = opened.read(1)
        opened.seek(at)
        opened.write(bytes([byte ^ 1 << bit]))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def entry_of(site: Site) -> Path:
    (name,) = site.entries()
    return site.store / "images" / name


@pytest.mark.parametrize("region", REGIONS)
@pytest.mark.parametrize("form", ["squashfs", "erofs"])
def test_root_mounts_nothing_of_it(site: Site, form: str, region: str) -> None:
    reference = tiny(site, "one", data=os.urandom(50_000))
    site.out("image", "pull", "--site", f"--rootfs={form}", reference)
    file = entry_of(site) / f"rootfs.{form}"
    at = REGIONS[region](form, file.read_bytes())
    flip(file, at)
    said = site.refused("image", "mount", "--rootfs", form, "--lease=a", reference, slug="image-digest")
    assert f"from byte {at // 4096 * 4096} on" in said and "image rm --site" in said
    site.assert_idle()
    flip(file, at)
    place = site.out("image", "mount", "--rootfs", form, "--lease=a", reference)
    assert len(Path(place, "one-0").read_bytes()) == 50_000
    site.out("image", "umount", "--lease=a", "--all")


@pytest.mark.parametrize("where", [0, -1])
def test_root_checks_the_hash_blocks_as_well(site: Site, where: int) -> None:
    reference = tiny(site, "one", data=os.urandom(50_000))
    site.out("image", "pull", "--site", "--rootfs=squashfs", reference)
    tree = entry_of(site) / "rootfs.verity"
    flip(tree, where % tree.stat().st_size)
    said = site.refused("image", "mount", "--lease=a", reference, slug="image-digest")
    assert "its hash blocks (rootfs.verity) changed" in said
    tree.unlink()
    site.refused("image", "mount", "--lease=a", reference, slug="image-digest")
    site.assert_idle()


@pytest.mark.parametrize("document", ["meta.json", "config.json", "facts.json"])
@pytest.mark.parametrize("form", ["dir", "squashfs"])
def test_a_document_that_changed_is_made_anew(site: Site, form: str, document: str) -> None:
    """Not believed, and not in the way: what it says can be had again."""
    reference = tiny(site, "one")
    site.out("image", "pull", "--site", f"--rootfs={form}", reference)
    file = entry_of(site) / document
    raw = file.read_bytes()
    flip(file, raw.index(b"linux" if document != "facts.json" else b"passwd") + 1)
    assert file.read_bytes() != raw
    site.out("image", "mount", f"--rootfs={form}", "--lease=a", reference)
    fresh = (entry_of(site) / document).read_bytes()
    assert fresh == raw or document == "meta.json"
    assert stored_from((entry_of(site) / "meta.json").read_bytes()).form == form
    site.out("image", "umount", "--lease=a", "--all")


@pytest.mark.parametrize("region", REGIONS)
@pytest.mark.parametrize("uid", [FIRST_USER, 0])
def test_no_pod_starts_from_it(site: Site, small: str, region: str, uid: int) -> None:
    """By FUSE, from the user's own store."""
    options = ["--rootfs=squashfs", "--no-home"]
    assert site.pod(uid, small, "true", options=options).returncode == 0
    (file,) = site.account(uid).store.glob("images/*/rootfs.squashfs")
    for path in (
        site.account(uid).runtime / "plans"
    ).iterdir():  # else nothing is read, as nothing was written
        path.unlink()
    at = REGIONS[region]("squashfs", file.read_bytes())
    flip(file, at)
    done = site.pod(uid, small, "true", options=options)
    assert done.returncode == 125 and done.stderr.splitlines()[0].endswith("[image-digest]"), done
    assert f"from byte {at // 4096 * 4096} on" in done.stderr and "image rm" in done.stderr
    flip(file, at)
    assert site.pod(uid, small, "true", options=options).returncode == 0


def test_a_pod_that_is_planned_already(site: Site, small: str) -> None:
    """The plan is void when its file changed."""
    options = ["--rootfs=squashfs", "--no-home"]
    assert site.pod(FIRST_USER, small, "true", options=options).returncode == 0
    (file,) = site.account(FIRST_USER).store.glob("images/*/rootfs.squashfs")
    flip(file, file.stat().st_size // 2)
    done = site.pod(FIRST_USER, small, "true", options=options)
    assert done.returncode == 125 and "[image-digest]" in done.stderr, done


# --------------------------------------------------------------------------- the comparison itself


@pytest.fixture
def packed(site: Site) -> Iterator[tuple[Path, StoredImage]]:
    site.out("image", "pull", "--site", "--rootfs=squashfs", tiny(site, "one", data=os.urandom(9_000)))
    entry = entry_of(site)
    yield entry / "rootfs.squashfs", stored_from((entry / "meta.json").read_bytes())


def judged(file: Path, image: StoredImage) -> HpcpodError | None:
    fd = os.open(file, os.O_RDONLY)
    try:
        compare(fd, f"{file.parent}/rootfs.verity", image, USERS_HINT)
    except HpcpodError as error:
        return error
    finally:
        os.close(fd)
    return None


def test_every_byte_counts(packed: tuple[Path, StoredImage]) -> None:
    file, image = packed
    for path in (file, file.parent / "rootfs.verity"):
        for at in range(path.stat().st_size):
            flip(path, at, at % 8)
            assert isinstance(judged(file, image), ImageDigestMismatch), (path, at)
            flip(path, at, at % 8)
    assert judged(file, image) is None


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, -1, -4096])
def test_a_file_of_another_length(packed: tuple[Path, StoredImage], size: int) -> None:
    """Cut, as a power cut leaves files; or with something behind."""
    file, image = packed
    os.truncate(file, size if size >= 0 else image.length - size)
    error = judged(file, image)
    assert isinstance(error, ImageDigestMismatch) and f"expected {image.length}" in error.message


@pytest.mark.parametrize("entry", ["older", "neither"])
def test_entries_from_before_there_were_roots(
    site: Site, packed: tuple[Path, StoredImage], entry: str
) -> None:
    """Are compared by their SHA-256; one without any is damaged, and made anew."""
    file, image = packed
    with file.open("rb") as opened:
        digest = intact.sha256_of(opened.fileno())
    fields = {
        name: value for name, value in vars(image).items() if name not in ("root", "length", "documents")
    }
    older = {**fields, "sha256": digest if entry == "older" else ""}
    (file.parent / "meta.json").write_bytes(sealed(older))
    (file.parent / "rootfs.verity").unlink()
    place = site.out("image", "mount", "--rootfs=squashfs", "--lease=a", image.reference)
    assert (Path(place) / "one-0").stat().st_size == 9_000
    site.out("image", "umount", "--lease=a", "--all")
    assert (entry_of(site) / "rootfs.verity").exists() == (entry == "neither")
    if entry == "older":
        flip(file, 5000)
        said = site.refused("image", "mount", "--lease=a", image.reference, slug="image-digest")
        assert f"expected {digest}" in said


def test_a_root_that_changed_with_its_seal(site: Site, packed: tuple[Path, StoredImage]) -> None:
    file, image = packed
    reseal(file.parent, root="00" * 32)
    said = site.refused(
        "image", "mount", "--rootfs=squashfs", "--lease=a", image.reference, slug="image-digest"
    )
    assert f"Merkle root {image.root}, expected {'00' * 32}" in said


def test_a_file_that_changes_while_it_is_compared(
    packed: tuple[Path, StoredImage], monkeypatch: pytest.MonkeyPatch
) -> None:
    file, image = packed
    real = leaves.leaves_of

    def late(fd: int, size: int) -> bytes:
        digests = real(fd, size)
        flip(file, 100)
        flip(file, 100)
        return digests

    monkeypatch.setattr(leaves, "leaves_of", late)
    error = judged(file, image)
    assert isinstance(error, ImageDigestMismatch) and "changed while it was compared" in error.message


def test_a_disk_that_cannot_read(packed: tuple[Path, StoredImage], monkeypatch: pytest.MonkeyPatch) -> None:
    file, image = packed

    def fail(fd: int, size: int) -> bytes:
        raise leaves.Unreadable(errno.EIO, 4096)

    monkeypatch.setattr(leaves, "leaves_of", fail)
    error = judged(file, image)
    assert isinstance(error, StoreUnusable)
    assert "at byte 4096: cannot be read: input/output error (EIO)" in error.message


def test_a_comparison_is_made_once_a_boot(packed: tuple[Path, StoredImage], tmp_path: Path) -> None:
    """And again for another file, content or root."""
    file, image = packed
    use = intact.Use(image, str(file.parent), str(tmp_path / "compared"))
    with contextlib.ExitStack() as stack:
        fd = os.open(file, os.O_RDONLY)
        stack.callback(os.close, fd)
        before = _read_bytes()
        intact.guard(fd, use)
        once = _read_bytes() - before
        assert once >= image.length
        before = _read_bytes()
        intact.guard(fd, use)
        assert _read_bytes() - before < 4096
        flip(file, 0)
        with pytest.raises(ImageDigestMismatch):
            intact.guard(fd, use)


def _read_bytes() -> int:
    """Bytes that this process has read by system calls (proc(5), io)."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(lines[0].partition(":")[2])
