# SPDX-License-Identifier: Apache-2.0
"""Whether a packed image is still what was packed (docs/reference/verified-at-use.md).

Where the kernel checks what it reads, nothing is read here.  Else every byte is compared once per boot of the
node: the identity of a file that was compared is kept in memory (tmpfs), so that a disk that lost or changed
bytes over a crash, or since, is noticed before the image is used again, and a start does not read it all.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress

from hpcpod.errors import HpcpodError, ImageDigestMismatch, StoreUnusable
from hpcpod.frozen import frozen
from hpcpod.images.stores import fsverity, merkle
from hpcpod.images.stores.guards import Guard, GuardFacts, choose_guard
from hpcpod.images.stores.store import META, META_MAX, TREE, StoredImage, read_file, stored_from

_CHUNK = 1 << 20
_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
USERS_HINT = "the disk changed it; hpcpod image rm removes it, the next run makes it anew"
SITES_HINT = "the disk changed it; hpcpod image rm --site removes it, image pull --site makes it anew"


def sha256_of(fd: int) -> str:
    """The SHA-256 of a file's content, hexadecimal."""
    import hashlib

    digest = hashlib.sha256()
    position = 0
    while chunk := os.pread(fd, _CHUNK, position):
        digest.update(chunk)
        position += len(chunk)
    return digest.hexdigest()


@frozen
class Use:
    """What a packed image is about to be used for.

    image: what its meta.json says; entry: the directory of both.  compared: where the identities of files are
    kept that were compared since the node was booted.  hint: for who finds it changed.  dm: why root cannot
    mount it by dm-verity, empty where it can, None for who is not root.
    """

    image: StoredImage
    entry: str
    compared: str
    hint: str = USERS_HINT
    dm: str | None = None

    @property
    def tree(self) -> str:
        """Path of its hash blocks."""
        return f"{self.entry}/{TREE}"


def check_used(file: str, name: str, compared: str) -> None:
    """Raise ImageDigestMismatch unless a packed file, which FUSE will show, is what was packed.

    name: of the entry that it lies in.  compared: as in Use.  Raises StoreUnusable, OSError.
    """
    entry = os.path.dirname(file)
    try:
        image = stored_from(read_file(f"{entry}/{META}", META_MAX))
        if image.name != name:
            raise ValueError("of another entry")
    except (ValueError, TypeError, RecursionError):
        raise ImageDigestMismatch(f"image {name}: {META}: not what was written", hint=USERS_HINT) from None
    fd = os.open(file, _OPEN)
    try:
        guard(fd, Use(image, entry, compared))
    finally:
        os.close(fd)


def guard(fd: int, use: Use) -> Guard:
    """What guards the open packed file from now on; where nothing better does, it is compared here.

    Raises ImageDigestMismatch, StoreUnusable, OSError.
    """
    chosen, _ = choose_guard(facts_of(fd, use), use.hint)
    if chosen is Guard.FS_VERITY:
        _check_length(fd, use.image, use.hint)
        _touch_ends(fd, use.image, use.hint)
    if chosen is Guard.COMPARED:
        _compare_once(fd, use)
    return chosen


def _touch_ends(fd: int, image: StoredImage, hint: str) -> None:
    """Have the kernel check the superblock and the last of the tables, without which no server starts.

    What it refuses elsewhere is an error for who reads it.
    """
    for position in (0, image.length - 1):
        try:
            os.pread(fd, 1, position)
        except OSError as error:
            raise _unreadable(fd, image, error, position, hint) from None


def facts_of(fd: int, use: Use) -> GuardFacts:
    """What the choice of a guard depends on.  Raises OSError."""
    image, dm = use.image, use.dm
    expected = merkle.measurement(image.root, image.length) if image.root else ""
    return GuardFacts(image.name, fsverity.measure(fd), expected, dm is not None, dm or "")


def _compare_once(fd: int, use: Use) -> None:
    image = use.image
    identity = f"{_identity(fd)} {image.root or image.sha256}"
    stamp = f"{use.compared}/{image.name}"
    try:
        with open(stamp, encoding="ascii", errors="replace") as known:
            if known.read() == identity:
                return
    except FileNotFoundError:
        pass
    compare(fd, use.tree, image, use.hint)
    os.makedirs(use.compared, 0o700, exist_ok=True)
    temporary = f"{stamp}.{os.getpid()}"
    with open(temporary, "w", encoding="ascii") as new:
        new.write(identity)
    os.rename(temporary, stamp)


def _identity(fd: int) -> str:
    status = os.fstat(fd)
    numbers = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    return " ".join(map(str, numbers))


def compare(fd: int, tree: str, image: StoredImage, hint: str) -> None:
    """Read the open packed file, and its hash blocks, and raise ImageDigestMismatch where they changed.

    Raises StoreUnusable where the disk cannot read them.
    """
    from hpcpod.images.stores.leaves import Unreadable, leaves_of  # a start rarely comes here

    before = _identity(fd)
    if image.root:
        _check_length(fd, image, hint)
        try:
            _compare_tree(leaves_of(fd, image.length), tree, image, hint)
        except Unreadable as error:
            raise _unreadable(fd, image, error, error.position, hint) from None
    else:
        try:
            found = sha256_of(fd)
        except OSError as error:
            raise _cannot_read(image.name, "its file", error) from None
        if found != image.sha256:
            raise ImageDigestMismatch(
                f"image {image.name}: its file has SHA-256 {found}, expected {image.sha256}", hint=hint
            )
    if _identity(fd) != before:
        raise ImageDigestMismatch(f"image {image.name}: its file changed while it was compared", hint=hint)


def _check_length(fd: int, image: StoredImage, hint: str) -> None:
    length = os.fstat(fd).st_size
    if length != image.length:
        raise ImageDigestMismatch(
            f"image {image.name}: its file has {length} bytes, expected {image.length}", hint=hint
        )


def _compare_tree(leaves: bytes, tree: str, image: StoredImage, hint: str) -> None:
    root, blocks = merkle.tree_of(leaves)
    try:
        stored = read_file(tree, len(blocks) + 1)
    except FileNotFoundError:
        stored = b""
    except OSError as error:
        raise _cannot_read(image.name, TREE, error) from None
    if root != image.root:
        where = _differing_block(leaves, stored, image)
        raise ImageDigestMismatch(
            f"image {image.name}: its file{where} is not what was packed: Merkle root {root}, "
            f"expected {image.root}",
            hint=hint,
        )
    if stored != blocks:
        raise ImageDigestMismatch(f"image {image.name}: its hash blocks ({TREE}) changed", hint=hint)


def _differing_block(leaves: bytes, stored: bytes, image: StoredImage) -> str:
    """Where the first changed block is, if the stored hash blocks are what they were."""
    known = merkle.leaves_in(stored, image.length) if len(stored) == merkle.tree_size(image.length) else b""
    if not known or merkle.tree_of(known)[0] != image.root:
        return ""
    starts = range(0, len(leaves), merkle.DIGEST)
    first = next(at for at in starts if leaves[at : at + merkle.DIGEST] != known[at : at + merkle.DIGEST])
    return f", from byte {first // merkle.DIGEST * merkle.BLOCK} on,"


def _unreadable(fd: int, image: StoredImage, error: OSError, position: int, hint: str) -> HpcpodError:
    guarded = ""
    with suppress(OSError):
        guarded = fsverity.measure(fd)
    if error.errno == errno.EIO and guarded:
        return ImageDigestMismatch(
            f"image {image.name}: its file, at byte {position}: fs-verity refuses what is there (EIO)",
            hint=hint,
        )
    if error.errno == 0:
        return ImageDigestMismatch(
            f"image {image.name}: its file ends at byte {position}, expected {image.length}", hint=hint
        )
    return _cannot_read(image.name, f"its file, at byte {position}", error)


def _cannot_read(name: str, what: str, error: OSError) -> StoreUnusable:
    code = errno.errorcode.get(error.errno or 0, "error")
    return StoreUnusable(
        f"image {name}: {what}: cannot be read: {os.strerror(error.errno or 0).lower()} ({code})",
        hint="the disk may be failing: its errors are in the kernel's log",
    )
