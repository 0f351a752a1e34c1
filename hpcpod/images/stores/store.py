# SPDX-License-Identifier: Apache-2.0
"""The stores of images: content-addressed, on a disk of the node.

    STORE/version                   format of the store
    STORE/images/sha256-HEX/        one image, whole or not there at all
        rootfs/                     the tree
        manifest.json config.json   the documents as they were verified
        facts.json                  what planning needs from inside (summary.py)
        meta.json                   what is known about it, written by this program
        rootfs.sums                 digests of the tree's files, from its first image verify (treesums.py)
        pinned                      there when it is never to be collected
    STORE/images/sha256-HEX.squashfs/   the same image packed: rootfs.squashfs instead of rootfs/
        rootfs.verity               hash blocks over that file (merkle.py)
    STORE/images/sha256-HEX.erofs/      rootfs.erofs
    STORE/tmp/                      images in the making (embryo.py)
    STORE/garbage/                  images being removed

An image appears by one rename, so readers need no lock and two nodes may share a store.  Locks, in the
run-time directory, only keep two processes of a node from doing the same work twice.

There are two: the site's, which root fills and all users read, and the user's own.  This module, with
ensure.py, is what a start with the image present needs; making one present is fetch.py's and site.py's.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext, suppress

from hpcpod.config import store_directory
from hpcpod.errors import ImageInvalid, StoreFull, StoreUnusable
from hpcpod.frozen import frozen
from hpcpod.images.limits import Limits
from hpcpod.images.sources.manifest import parse_config
from hpcpod.images.sources.reference import parse_reference
from hpcpod.images.sources.source import open_source
from hpcpod.images.stores.forms import entry_name, parse_entry
from hpcpod.images.stores.place import place_of
from hpcpod.images.stores.seal import digest_of, opened
from hpcpod.images.stores.summary import from_json
from hpcpod.model import Form, FuseImage, Platform, Rootfs, Tree, VerifiedImage
from hpcpod.settings import Settings

VERSION = 1
ROOTFS, CONFIG, MANIFEST, META, FACTS = "rootfs", "config.json", "manifest.json", "meta.json", "facts.json"
PINNED = "pinned"
TREE, SUMS = "rootfs.verity", "rootfs.sums"
META_MAX = 1 << 20
_FACTS_MAX = 16 << 20
_VERSION_MAX = 64
_LENGTH_MAX = (1 << 63) - 1
_SHA256 = re.compile(r"[0-9a-f]{64}")


@frozen
class StoredImage:
    """What meta.json says about an image in the store.

    size: bytes of its layers, uncompressed.  when: seconds since 1970.  skipped: devices and FIFOs left out.
    form: of this entry; why: it was chosen.  disk: bytes that the entry takes.  seconds: how long it took to
    make.  root: of the packed file's Merkle tree (merkle.py), hexadecimal; length: of that file, bytes.
    sha256: the same file's, where it was packed before there were roots.  documents: digest of config.json
    and facts.json (seal.digest_of), manifest: of manifest.json.
    """

    digest: str
    reference: str
    platform: str
    size: int
    entries: int
    skipped: int
    when: int
    form: str = Form.DIRECTORY.value
    why: str = ""
    disk: int = 0
    sha256: str = ""
    seconds: float = 0.0
    root: str = ""
    length: int = 0
    documents: str = ""
    manifest: str = ""

    @property
    def name(self) -> str:
        """Of the entry."""
        return entry_name(self.digest, Form(self.form))


def _kind_of(name: str) -> type | tuple[type, ...]:
    """What a field of meta.json holds."""
    if name in ("size", "entries", "skipped", "when", "disk", "length"):
        return int
    return (int, float) if name == "seconds" else str


def stored_from(raw: bytes) -> StoredImage:
    """What a meta.json says.  Raises ValueError and its like for one that this program did not write."""
    fields = opened(raw)
    known = {name: fields[name] for name in StoredImage.__match_args__ if name in fields}
    if any(not isinstance(value, _kind_of(name)) for name, value in known.items()):
        raise ValueError("a field of another type")
    image = StoredImage(**known)
    digests = (image.root, image.sha256) if image.form != Form.DIRECTORY.value else ("",)
    if not all(_SHA256.fullmatch(digest) for digest in digests if digest) or digests == ("", ""):
        raise ValueError("nothing to compare the packed file with")
    if image.root and not 0 < image.length <= _LENGTH_MAX:
        raise ValueError("no length of a file")
    return image


class Store:
    """The directories of a store.  Made by open_store() and open_site().

    run: of the site's store, its run-time directory; empty for a user's own.
    """

    def __init__(self, directory: str, run: str = "") -> None:
        self.directory = directory
        self.run = run
        self.images = f"{directory}/images"
        self.tmp = f"{directory}/tmp"
        self.garbage = f"{directory}/garbage"

    @property
    def site(self) -> bool:
        """Whether it is the site's."""
        return bool(self.run)

    def path(self, digest: str, form: Form = Form.DIRECTORY) -> str:
        """Where the image of this manifest digest is, or would be."""
        return f"{self.images}/{entry_name(digest, form)}"

    def content(self, digest: str, form: Form = Form.DIRECTORY) -> str:
        """Where its tree is, or the file that holds it."""
        return f"{self.path(digest, form)}/{content_name(form)}"

    def mount_point(self, digest: str, form: Form) -> str:
        """Where root mounts a packed image of the site's store."""
        return f"{self.run}/mounts/{entry_name(digest, form)}"

    def stored(self, digest: str, form: Form = Form.DIRECTORY) -> StoredImage | None:
        """What is known about an image; None when it is not there, or damaged."""
        try:
            return self._load(digest, form)
        except (OSError, ValueError, TypeError, RecursionError):
            return None

    def is_damaged(self, digest: str, form: Form) -> bool:
        """Whether something of an entry is gone or wrong for good.

        A file that could not be read this once (EMFILE, EIO, ESTALE) says nothing.
        """
        try:
            self._load(digest, form)
        except OSError as error:
            return error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
        except (ValueError, TypeError, RecursionError):
            return True
        return False

    def _load(self, digest: str, form: Form) -> StoredImage:
        """Raises OSError; ValueError and its like for a document that is none of this program's."""
        meta = stored_from(read_file(f"{self.path(digest, form)}/{META}", META_MAX))
        os.stat(self.content(digest, form))
        if meta.digest != digest or meta.form != form.value:
            raise ValueError("of another image")
        return meta

    def find(
        self, digest: str, reference: str, limits: Limits, wanted: Form | None = None
    ) -> VerifiedImage | None:
        """An image of the store that can be used as it is; None when there is none, or only a damaged one.

        wanted: the only form to look for; None for any.
        """
        images = (self.stored(digest, form) for form in (Form if wanted is None else (wanted,)))
        usable = ((meta, rootfs) for meta in images if meta and (rootfs := self._rootfs(meta)))
        # One that root has mounted is faster than FUSE.
        for meta, rootfs in sorted(usable, key=lambda pair: isinstance(pair[1], FuseImage)):
            found = self._verified(meta, reference, limits, rootfs)
            if found is not None:
                return found
        return None

    def _verified(
        self, meta: StoredImage, reference: str, limits: Limits, rootfs: Rootfs
    ) -> VerifiedImage | None:
        path = self.path(meta.digest, Form(meta.form))
        try:
            raw = read_file(f"{path}/{CONFIG}", limits.json_bytes + 1)
            facts = read_file(f"{path}/{FACTS}", _FACTS_MAX)
            if meta.documents and digest_of(raw, facts) != meta.documents:
                return None
            document = parse_config(raw, f"{path}/{CONFIG}", limits)
            inside = from_json(facts)
            place = place_of(path)
        except (OSError, ImageInvalid, ValueError, KeyError, TypeError, RecursionError):
            return None
        return VerifiedImage(
            reference=reference,
            digest=meta.digest,
            rootfs=rootfs,
            platform=document.platform,
            config=document.config,
            inside=inside,
            place=place,
        )

    def is_whole(self, name: str, limits: Limits) -> bool:
        """Whether the entry of this name is there and all its documents can be read."""
        parsed = parse_entry(name)
        meta = parsed and self.stored(*parsed)
        if not parsed or meta is None:
            return False
        return self._verified(meta, "", limits, Tree(self.content(*parsed))) is not None

    def _rootfs(self, meta: StoredImage) -> Rootfs | None:
        """How a pod gets at the image; None where that needs what is not here (root's mount, a program)."""
        form = Form(meta.form)
        content = self.content(meta.digest, form)
        if form is Form.DIRECTORY:
            return Tree(content)
        if self.site and is_mounted(self.mount_point(meta.digest, form)):
            return Tree(self.mount_point(meta.digest, form))
        if form is Form.EROFS:
            return None
        from hpcpod.images.stores.tools import squashfuse

        server = squashfuse()
        return FuseImage(content, meta.name, server) if server else None

    def all(self) -> tuple[StoredImage, ...]:
        """All whole images, newest first."""
        entries = filter(None, map(parse_entry, os.listdir(self.images)))
        found = (self.stored(digest, form) for digest, form in entries)
        return tuple(sorted((meta for meta in found if meta), key=lambda meta: (-meta.when, meta.name)))

    def tidy(self) -> int:
        """Remove what killed processes left; how many things.

        Trouble with it is not this command's: the next tries again.
        """
        from hpcpod.images.stores import embryo
        from hpcpod.images.stores.usage import is_root_of_pod

        removed = 0
        with suppress(OSError):
            removed += embryo.sweep(self.tmp)
        with suppress(OSError):
            removed += embryo.sweep(self.garbage, own=True, keep=is_root_of_pod)
        return removed

    def identify(self, reference: str, platform: Platform, limits: Limits) -> str | None:
        """The digest that a reference means now; None where what it names is not there any more.

        No registry is asked: a name of one means what it meant last.
        """
        from hpcpod.images.stores import names  # which knows stores

        parsed = parse_reference(reference)
        if parsed.transport == "docker":
            known = names.recall((self,), parsed, platform)
            return known.digest if known else None
        if not os.path.exists(parsed.path):
            return None
        with open_source(parsed, limits) as source:
            return source.find(platform)

    def held(self, name: str) -> AbstractContextManager[None]:
        """While the body runs nobody else mounts or removes an entry.  A user's own is mounted by nobody."""
        return nullcontext()

    def forget(self) -> None:
        """Remove what is remembered of entries that are gone.  Of a user's own, hpcpod gc does, by age."""

    def dispose(self, path: str) -> None:
        """Delete a directory that was moved to the garbage.  Raises OSError."""
        from hpcpod.images.unpacking.tree import remove_tree

        remove_tree(path)


def content_name(form: Form) -> str:
    """Name of the tree in an entry of this form, or of the file that holds it."""
    return ROOTFS if form is Form.DIRECTORY else f"{ROOTFS}.{form.value}"


def content_names(form: Form) -> set[str]:
    """Names in an entry of this form of what is not a document."""
    return {ROOTFS} if form is Form.DIRECTORY else {content_name(form), TREE}


def is_mounted(path: str) -> bool:
    """Whether root has mounted something on this directory of the site's run-time directory.

    Only root's: a user who made a directory or a link of that name first could show others another image.
    """
    above = os.path.dirname(path)
    try:
        safe = _only_root_writes(os.path.dirname(above)) and _only_root_writes(above)
        return safe and os.lstat(path).st_dev != os.lstat(above).st_dev
    except OSError:
        return False


def read_file(path: str, longest: int) -> bytes:
    """The first bytes of a file of a store, which is no link.  Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        return os.read(fd, longest)
    finally:
        os.close(fd)


def open_store(environment: Mapping[str, str], uid: int) -> Store:
    """The user's store, made where missing.  Raises StoreUnusable."""
    store = Store(store_directory(environment, uid))
    if not check_version(store):
        make_store(store)
    return store


def open_site(settings: Settings) -> Store | None:
    """The site's store, for reading; None where there is none that this program and user could rely on.

    One that others than root could change, or of another version, is passed over: users have their own.
    """
    store = Store(settings.site, settings.site_run)
    try:
        safe = settings.site and all(map(_only_root_writes, (store.directory, store.images)))
        return store if safe and check_version(store) else None
    except (OSError, StoreUnusable):
        return None


def _only_root_writes(path: str) -> bool:
    status = os.lstat(path)
    return stat.S_ISDIR(status.st_mode) and status.st_uid == 0 and not status.st_mode & 0o022


def check_version(store: Store) -> bool:
    """Whether the store is there.  Raises StoreUnusable for one that this program cannot read."""
    try:
        version = read_file(f"{store.directory}/version", _VERSION_MAX)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise StoreUnusable(
            f"image store {store.directory}: {os.strerror(error.errno or 0).lower()}"
        ) from None
    if version.strip() != b"%d" % VERSION:
        raise StoreUnusable(
            f"image store {store.directory}: version {version[:20]!r}, this program reads {VERSION}",
            hint="a newer hpcpod made it; choose another with HPCPOD_STORE",
        )
    return True


def make_store(store: Store, mode: int = 0o700, scratch: str = "") -> None:
    """Make the directories, then the version file, which says that they are there.  Raises StoreUnusable.

    scratch: where the version file is made; empty for tmp/.
    """
    from hpcpod.images.stores.embryo import make_embryo

    try:
        for path in (store.images, store.tmp, store.garbage):
            os.makedirs(path, mode, exist_ok=True)
        embryo = make_embryo(scratch or store.tmp)  # what a killed process leaves is swept from there
        fd = os.open("version", os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode & 0o644, dir_fd=embryo.fd)
        try:
            os.write(fd, b"%d\n" % VERSION)
            os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(f"{embryo.path}/version", f"{store.directory}/version")
        embryo.discard()
    except OSError as error:
        kind = StoreFull if error.errno in (errno.ENOSPC, errno.EDQUOT) else StoreUnusable
        raise kind(
            f"image store {store.directory}: cannot be made: {os.strerror(error.errno or 0).lower()}",
            hint="choose another with HPCPOD_STORE, on a disk of this node",
        ) from None


def sweep(directory: str) -> int:
    """Remove what killed processes left in a store; returns how many things.  Raises OSError."""
    from hpcpod.images.stores import embryo
    from hpcpod.images.stores.usage import is_root_of_pod

    store = Store(directory)
    if not os.path.isdir(store.tmp):
        return 0
    removed = embryo.sweep(store.tmp)
    return removed + embryo.sweep(store.garbage, own=True, keep=is_root_of_pod)
