# SPDX-License-Identifier: Apache-2.0
"""``dir:PATH``: a directory tree as a source of the store (source.py says what that is).

The tree is copied, as every image is: who runs it meanwhile runs what was hashed, and a later change to the
directory makes another image.  fingerprint() says cheaply whether there was one.
"""

from __future__ import annotations

import json
import os

from hpcpod.errors import HpcpodError, ImageDigestMismatch, ImageInvalid
from hpcpod.images.limits import Limits
from hpcpod.images.sources.dirtree import DirTree, Fingerprint, fingerprint, open_tree
from hpcpod.images.sources.layout import stamp_of
from hpcpod.images.sources.manifest import parse_config
from hpcpod.images.sources.platforms import check_fits
from hpcpod.images.sources.reference import Reference
from hpcpod.images.sources.source import Described, Part
from hpcpod.images.sources.treeconfig import TreeConfig, config_bytes, read_config
from hpcpod.images.trust.facts import Signature, Subject, path_scopes
from hpcpod.log import Progress, Silent, shown
from hpcpod.model import FileStamp, Platform

TYPE_CHECKING = False  # importing typing would be a sixth of a preparation's start (docs/adr/0005)
if TYPE_CHECKING:
    from types import TracebackType
    from typing import NoReturn, Self

    from hpcpod.images.unpacking.layers import Unpacked


class DirSource:
    """An image that is a directory.  A context manager."""

    def __init__(self, reference: Reference, limits: Limits) -> None:
        path = os.path.abspath(reference.path)
        self._path = path
        self._limits = limits
        self._pin = reference.digest
        self._hash = ""
        self._known = ""
        self._found: TreeConfig | None = None
        self._fd = open_tree(path)
        self._stamp = stamp_of(path, os.fstat(self._fd))

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the directory."""
        self.close()

    @property
    def name(self) -> str:
        """For messages, printable."""
        return f"dir:{shown(self._path)}"

    @property
    def stamp(self) -> FileStamp:
        """Identity of the directory itself; fingerprint() is that of all that is in it."""
        return self._stamp

    def fingerprint(self) -> Fingerprint:
        """What lstat(2) says of the whole tree: 10,000 entries in some tens of milliseconds.

        Raises ImageInvalid and its kinds.
        """
        try:
            return fingerprint(self._fd, self._limits)
        except (HpcpodError, OSError) as error:
            self._fail(error)

    def identity(self) -> str:
        """Tells this content from any other that the tree may have; empty where it was changed just now."""
        found = self.fingerprint()
        return found.digest if found.settled else ""

    def assume(self, digest: str) -> None:
        """Let find() answer a digest that was found for this identity, without reading the tree."""
        self._known = self._check_pin(digest)

    def find(self, platform: Platform) -> str:
        """The digest of the tree; a pin says what it has to be, and is no reason to believe it."""
        return self._known or self._digest(Silent())

    def describe(self, platform: Platform) -> Described:
        """What its maker left in it, as a configuration of the image-spec."""
        digest = self._digest(Silent())
        try:
            self._found = self._config(self._path)
            built_for = Platform("linux", self._found.architecture) if self._found.architecture else platform
            check_fits(built_for, platform, self.name)
            raw = config_bytes(built_for, self._found.fields)
            config = parse_config(raw, "configuration", self._limits)
        except (HpcpodError, OSError) as error:
            self._fail(error)
        document = {"transport": "dir", "digest": digest}
        return Described(
            digest=digest,
            parts=(Part(digest, "directory", 0),),
            config=config,
            manifest_bytes=json.dumps(document, indent=1).encode() + b"\n",
            config_bytes=raw,
            details=self._found.notes,
        )

    def subject(self, platform: Platform) -> Subject:
        """Scopes: the directory, and those above it."""
        return Subject("dir", path_scopes(os.path.realpath(self._path)), "", self.find(platform))

    def signatures(self, platform: Platform) -> tuple[Signature, ...]:
        """None: a tree has no place for them."""
        return ()

    def unpack(self, directory: str, progress: Progress, readable: int = 0) -> Unpacked:
        """Copy the tree; the copy has the digest that describe() said."""
        from hpcpod.images.unpacking.filling import filling
        from hpcpod.images.unpacking.layers import Unpacked
        from hpcpod.images.unpacking.pipeline import Budget

        self._check_outside(directory)
        budget, expected = Budget(self._limits), self._hash
        with filling(directory, (0, 0), self._limits, progress, readable) as applier:
            tree = DirTree(self._fd, self._limits, budget.spend, progress.advance)
            try:
                applier.layer(tree, lowest=True)
                if tree.digest() != expected:
                    raise ImageDigestMismatch(
                        f"has digest {tree.digest()}, expected {expected}",
                        hint="the directory was changed since it was read, or since its digest was noted",
                    )
                if self._config(directory) != self._found:
                    raise ImageDigestMismatch("changed while it was read")
            except HpcpodError as error:
                self._fail(error)
        return Unpacked(budget.used, applier.entries, applier.skipped, applier.disk)

    def close(self) -> None:
        """Close the directory."""
        os.close(self._fd)

    def _digest(self, progress: Progress) -> str:
        if not self._hash:
            from hpcpod.images.unpacking.pipeline import Budget

            tree = DirTree(self._fd, self._limits, Budget(self._limits).spend, progress.advance)
            try:
                self._hash = self._check_pin(tree.hash())
            except (HpcpodError, OSError) as error:
                self._fail(error)
        return self._hash

    def _check_pin(self, digest: str) -> str:
        """The digest, if the reference pins no other.  Raises ImageDigestMismatch."""
        if self._pin not in ("", digest):
            raise ImageDigestMismatch(
                f"image {self.name}: pinned to {self._pin}, but has {digest}",
                hint="the directory was changed since its digest was noted, or that is of another image",
            )
        return digest

    def _config(self, path: str) -> TreeConfig:
        from hpcpod.images.contents.inside import Inside

        with Inside(path) as files:
            return read_config(files, self._limits)

    def _check_outside(self, directory: str) -> None:
        """A copy that lies in the tree would be copied, too."""
        here, tree = os.path.realpath(directory), os.path.realpath(self._path)
        if os.path.commonpath((here, tree)) == tree:
            raise ImageInvalid(
                f"image {self.name}: holds {shown(here)}, which it would be copied to",
                hint="HPCPOD_STORE chooses another place for the store",
            )

    def _fail(self, error: HpcpodError | OSError) -> NoReturn:
        """Raise the error with the image's name before it."""
        if isinstance(error, OSError):
            raise ImageInvalid(f"image {self.name}: {os.strerror(error.errno or 0).lower()}") from None
        if self.name not in error.message:
            error.message = f"image {self.name}: {error.message}"
        raise error from None
