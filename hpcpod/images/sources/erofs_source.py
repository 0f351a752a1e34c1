# SPDX-License-Identifier: Apache-2.0
"""``erofs:FILE``: an image of mkfs.erofs, as a source of the store (source.py says what that is)."""

from __future__ import annotations

from hpcpod.images.sources.erofs import Erofs
from hpcpod.images.sources.imagefile import ImageFile


class ErofsSource(ImageFile):
    """An image in an EROFS file.  A context manager."""

    def _open(self) -> Erofs:
        return Erofs(self._file.read, self._size, self._limits)
