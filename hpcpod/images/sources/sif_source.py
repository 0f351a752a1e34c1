# SPDX-License-Identifier: Apache-2.0
"""``sif:FILE``: a Singularity image as a source of the store (source.py says what that is)."""

from __future__ import annotations

import json

from hpcpod.errors import ImageInvalid, ImageUnsupported
from hpcpod.images.limits import Limits
from hpcpod.images.sources import sif
from hpcpod.images.sources.fstree import FileSystem
from hpcpod.images.sources.imagefile import ImageFile
from hpcpod.images.sources.reference import Reference
from hpcpod.images.sources.sif import Sif, SifObject, parse_sif
from hpcpod.images.sources.squashfs import Squashfs
from hpcpod.images.sources.treeconfig import TreeConfig
from hpcpod.images.strictjson import Fields, parse_object
from hpcpod.images.trust.facts import Signature
from hpcpod.model import Platform

_METADATA = "inspect-metadata.json"
"""The object in which Apptainer keeps what `apptainer inspect` shows."""
_HINTS = {
    "ext3": "apptainer build --sandbox makes a directory of it, which dir: reads",
    "encrypted squashfs": "only who has its key can read it: apptainer build makes a plain one",
}


class SifSource(ImageFile):
    """An image in a SIF file.  A context manager."""

    def __init__(self, reference: Reference, limits: Limits) -> None:
        super().__init__(reference, limits)
        self._sif: Sif | None = None

    @property
    def _image(self) -> Sif:
        """Header and descriptors.  Raises ImageInvalid."""
        if self._sif is None:
            self._sif = parse_sif(self._file.read, self._size, self._limits)
        return self._sif

    def _open(self) -> FileSystem:
        root = self._root(self._image)
        return Squashfs(self._file.below(root.offset), root.size, self._limits)

    def _config(self, image: FileSystem) -> TreeConfig:
        """What Apptainer left in the tree; labels of the file's objects count before those in the tree."""
        found = super()._config(image)
        root = self._root(self._image)
        labels = self._labels(self._image)
        fields = {**found.fields, "Labels": labels} if labels else found.fields
        assert root.partition is not None
        return TreeConfig(fields, (*_details(self._image), *found.notes), root.partition.architecture)

    def _manifest(self, digest: str) -> bytes:
        return json.dumps(_document(self._image), indent=1).encode() + b"\n"

    def signatures(self, platform: Platform) -> tuple[Signature, ...]:
        """Those in the file, with the digests that its objects really have; DSSE ones are not told apart."""
        from hpcpod.images.sources.sifsigned import signatures

        self._digest()
        try:
            return signatures(self._image, self._file.read, self.name)
        except (ImageInvalid, OSError) as error:
            raise self._named(error) from None

    def _root(self, image: Sif) -> SifObject:
        """The primary partition.  Raises ImageInvalid, ImageUnsupported."""
        root = image.primary
        if root is None and any(found.kind == sif.KINDS[sif.OCI_INDEX] for found in image.objects):
            raise ImageUnsupported(
                "holds an OCI image, which is not read",
                hint="apptainer pull and build make a SIF without --oci; skopeo copies the image itself",
            )
        if root is None or root.partition is None:
            raise ImageInvalid("no primary partition in it", hint="it holds no root file system to run")
        if root.partition.file_system != sif.FILE_SYSTEMS[sif.SQUASHFS]:
            raise ImageUnsupported(
                f"its root file system is {root.partition.file_system}, which is not read",
                hint=_HINTS.get(root.partition.file_system, "apptainer build makes a squashfs of it"),
            )
        return root

    def _labels(self, image: Sif) -> dict[str, str]:
        """Those of the labels object, else those in Apptainer's metadata."""
        for found in image.objects:
            if found.kind == sif.KINDS[sif.LABELS]:
                return dict(Fields({"labels": self._json(found)}, "labels").mapping("labels"))
        for found in image.objects:
            if found.kind == sif.KINDS[sif.GENERIC_JSON] and found.name == _METADATA:
                fields = Fields(self._json(found), _METADATA)
                for key in ("data", "attributes"):
                    if not fields.has(key):
                        return {}
                    fields = fields.child(key)
                return dict(fields.mapping("labels"))
        return {}

    def _json(self, found: SifObject) -> dict[str, object]:
        raw = self._file.read(found.offset, min(found.size, self._limits.json_bytes + 1))
        return parse_object(raw, f"object {found.number}", self._limits)


def _document(image: Sif) -> dict[str, object]:
    """The header and descriptors as a document for the store."""
    objects = []
    for found in image.objects:
        fields = {key: value for key, value in vars(found).items() if key != "partition"}
        objects.append({**fields, **(vars(found.partition) if found.partition else {})})
    return {**{key: value for key, value in vars(image).items() if key != "objects"}, "objects": objects}


def _details(image: Sif) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """What `image inspect` shows beside what all images have."""
    objects = []
    for found in image.objects:
        words = [f"{found.number}", found.kind, f"{found.size} B"]
        if found.partition is not None:
            words += [found.partition.file_system, found.partition.use]
            words += [found.partition.architecture or "any architecture"]
        if found.link:
            words.append(f"of {'group' if found.of_group else 'object'} {found.link}")
        objects.append(" ".join([*words, *([found.name] if found.name else [])]))
    return ("launch", (image.launch.strip(),)), ("identity", (image.identity,)), ("objects", tuple(objects))
