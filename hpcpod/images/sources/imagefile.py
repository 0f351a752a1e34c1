# SPDX-License-Identifier: Apache-2.0
"""What sources have in common whose image is a file system in a file: sif:, sqsh: and erofs:.

Such a file has no digest of its own: the sha256 of all of it names the image.  It is read once for that, and
again to unpack, and each piece must then be what was hashed (hashedfile.py): what is unpacked is what was
hashed, even if somebody writes to the file meanwhile.
"""

from __future__ import annotations

from hpcpod.errors import ImageInvalid, ImageUnsupported
from hpcpod.images.limits import Limits
from hpcpod.images.sources.filesource import FileSource
from hpcpod.images.sources.hashedfile import HashedFile
from hpcpod.images.sources.manifest import parse_config
from hpcpod.images.sources.platforms import check_fits
from hpcpod.images.sources.reference import Reference
from hpcpod.images.sources.source import Described, Part
from hpcpod.images.sources.treeconfig import TreeConfig, config_bytes, read_config
from hpcpod.images.trust.facts import Subject
from hpcpod.log import Progress
from hpcpod.model import Platform

TYPE_CHECKING = False  # importing typing would be a sixth of a preparation's start (docs/adr/0005)
if TYPE_CHECKING:
    from hpcpod.images.sources.fstree import FileSystem
    from hpcpod.images.unpacking.layers import Unpacked


class ImageFile(FileSource):
    """An image that is a file system in a file.  A context manager.

    Who derives from it opens the file system (_open), and says in what else the format differs.
    """

    def __init__(self, reference: Reference, limits: Limits) -> None:
        super().__init__(reference, limits)
        self._file = HashedFile(self._fd, self._size)

    def find(self, platform: Platform) -> str:
        """The digest of the file's content; a pin says what it has to be, and is no reason to believe it."""
        return self._known or self._digest()

    def describe(self, platform: Platform) -> Described:
        """What the file says of itself, as a configuration of the image-spec."""
        digest = self._digest()
        try:
            return self._describe(digest, platform)
        except (ImageInvalid, ImageUnsupported, OSError) as error:
            raise self._named(error) from None

    def subject(self, platform: Platform) -> Subject:
        """The file."""
        return self._subject(self.find(platform))

    def unpack(self, directory: str, progress: Progress, readable: int = 0) -> Unpacked:
        """Unpack the file system, which this program reads itself."""
        from hpcpod.images.sources.fstree import FsTree
        from hpcpod.images.unpacking.filling import filling
        from hpcpod.images.unpacking.layers import Unpacked
        from hpcpod.images.unpacking.pipeline import Budget

        budget = Budget(self._limits)
        self._digest()
        with filling(directory, (self._size, 0), self._limits, progress, readable) as applier:
            try:
                tree = FsTree(self._open(), self._limits, budget.spend, progress.advance)
                applier.layer(tree, lowest=True)
            except (ImageInvalid, ImageUnsupported) as error:
                raise self._named(error) from None
        return Unpacked(budget.used, applier.entries, applier.skipped, applier.disk)

    def _digest(self) -> str:
        """That of the file's content, which is read once.  Raises ImageDigestMismatch, ImageInvalid."""
        try:
            return self._check_pin(self._file.digest)
        except (ImageInvalid, OSError) as error:
            raise self._named(error) from None

    def _open(self) -> FileSystem:
        """The root file system.  Raises ImageInvalid, ImageUnsupported."""
        raise NotImplementedError

    def _describe(self, digest: str, platform: Platform) -> Described:
        image = self._open()
        config = self._config(image)
        built_for = Platform("linux", config.architecture) if config.architecture else platform
        check_fits(built_for, platform, self.name)
        raw = config_bytes(built_for, config.fields)
        return Described(
            digest=digest,
            parts=(Part(digest, image.name, self._size),),
            config=parse_config(raw, "configuration", self._limits),
            manifest_bytes=self._manifest(digest),
            config_bytes=raw,
            details=config.notes,
        )

    def _config(self, image: FileSystem) -> TreeConfig:
        from hpcpod.images.sources.treefiles import TreeFiles

        return read_config(TreeFiles(image), self._limits)

    def _manifest(self, digest: str) -> bytes:
        """A document for the store, of a format that has none."""
        import json

        document = {"transport": self._transport, "digest": digest, "size": self._size}
        return json.dumps(document, indent=1).encode() + b"\n"
