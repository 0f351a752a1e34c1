# SPDX-License-Identifier: Apache-2.0
"""Whether an entry of a store is what it was when it was made: all of it read, whatever guards it in use."""

from __future__ import annotations

import os
import time
from contextlib import suppress

from hpcpod.errors import HpcpodError, ImageDigestMismatch, as_hpcpod_error
from hpcpod.frozen import frozen
from hpcpod.images.stores.forms import parse_entry
from hpcpod.images.stores.intact import SITES_HINT, USERS_HINT, compare
from hpcpod.images.stores.seal import digest_of
from hpcpod.images.stores.store import (
    CONFIG,
    FACTS,
    MANIFEST,
    META,
    SUMS,
    TREE,
    Store,
    StoredImage,
    read_file,
)
from hpcpod.images.stores.treesums import compare_sums, sums_of
from hpcpod.model import Form

_DOCUMENT_MAX = 64 << 20
_SUMS_MAX = 1 << 30


@frozen
class Verdict:
    """What verifying an entry gave.  how: what it was compared with.  error: None for a good one."""

    image: StoredImage
    how: str
    seconds: float
    error: HpcpodError | None = None


def verify(store: Store, image: StoredImage) -> Verdict:
    """Compare a whole entry with what was written down when it was made."""
    started = time.monotonic()
    error: HpcpodError | None = None
    how = ""
    try:
        _check_documents(store, image)
        how = _check_content(store, image)
    except HpcpodError as found:
        error = found
    except OSError as found:
        error = as_hpcpod_error(found, f"image {image.name}")
    return Verdict(image, how, round(time.monotonic() - started, 3), error)


def damaged(store: Store) -> list[Verdict]:
    """Entries of which not even meta.json can be believed, or whose content is gone.  Raises OSError."""
    found = []
    for name in sorted(os.listdir(store.images)):
        parsed = parse_entry(name)
        if parsed and store.is_damaged(*parsed):
            message = f"image {name}: {META} or content: gone, or not what was written"
            error = ImageDigestMismatch(message, hint=_hint(store))
            found.append(Verdict(StoredImage(parsed[0], "", "", 0, 0, 0, 0, parsed[1].value), "", 0.0, error))
    return found


def _hint(store: Store) -> str:
    return SITES_HINT if store.site else USERS_HINT


def _check_documents(store: Store, image: StoredImage) -> None:
    path = store.path(image.digest, Form(image.form))
    for names, known in (((MANIFEST,), image.manifest), ((CONFIG, FACTS), image.documents)):
        found = digest_of(*(read_file(f"{path}/{name}", _DOCUMENT_MAX) for name in names))
        if known and found != known:
            raise ImageDigestMismatch(
                f"image {image.name}: {' or '.join(names)}: SHA-256 {found}, expected {known}",
                hint=_hint(store),
            )


def _check_content(store: Store, image: StoredImage) -> str:
    """Compare the packed file or the tree; with what.  Raises ImageDigestMismatch, StoreUnusable, OSError."""
    form = Form(image.form)
    content = store.content(image.digest, form)
    if form is Form.DIRECTORY:
        return _check_tree(store, image, content)
    fd = os.open(content, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        compare(fd, f"{store.path(image.digest, form)}/{TREE}", image, _hint(store))
    finally:
        os.close(fd)
    return "Merkle root" if image.root else "SHA-256"


def _check_tree(store: Store, image: StoredImage, tree: str) -> str:
    """Against the list of an earlier time, which this makes where there is none."""
    path = f"{store.path(image.digest)}/{SUMS}"
    known = b""
    with suppress(FileNotFoundError):
        known = read_file(path, _SUMS_MAX)
    found = sums_of(tree)
    if known:
        compare_sums(image.name, known, found, _hint(store))
        return "list of its files"
    try:
        _write(path, found)
    except PermissionError:
        return "nothing: no list of its files yet, which root makes"
    return "nothing: list of its files made now"


def _write(path: str, content: bytes) -> None:
    temporary = f"{path}.{os.getpid()}"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o444)
    try:
        rest = memoryview(content)
        while rest:
            rest = rest[os.write(fd, rest) :]
        os.fsync(fd)
    finally:
        os.close(fd)
    os.rename(temporary, path)
