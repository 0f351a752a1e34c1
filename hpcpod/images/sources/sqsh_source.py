# SPDX-License-Identifier: Apache-2.0
"""``sqsh:FILE``: a squashfs of whatever tool, as a source of the store (source.py says what that is)."""

from __future__ import annotations

from hpcpod.errors import ImageInvalid
from hpcpod.images.sources.imagefile import ImageFile
from hpcpod.images.sources.squashfs import Squashfs

_MAGIC = b"hsqs"
_BIG_ENDIAN = b"sqsh"
_SIF_MARK_AT = 32
_LIKELIER = (
    (0, _BIG_ENDIAN, "it is a squashfs of another machine's byte order, of before version 4"),
    (_SIF_MARK_AT, b"SIF_MAGIC", "it is a SIF file: write sif:FILE"),
    (1024, b"\xe2\xe1\xf5\xe0", "it is an EROFS image: write erofs:FILE"),
)
"""What else a file may be that somebody took for one."""


class SqshSource(ImageFile):
    """An image in a squashfs file.  A context manager."""

    def _open(self) -> Squashfs:
        if self._file.read(0, len(_MAGIC)) != _MAGIC:
            hint = next(
                (hint for at, mark, hint in _LIKELIER if self._file.read(at, len(mark)) == mark), None
            )
            raise ImageInvalid("squashfs: does not have the mark of one", hint=hint)
        return Squashfs(self._file.read, self._size, self._limits)
