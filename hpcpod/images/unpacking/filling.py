# SPDX-License-Identifier: Apache-2.0
"""Fill an empty directory with one tree: what sources of a single tree (aci:, sif:) have in common."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from hpcpod.images.limits import Limits
from hpcpod.images.unpacking.apply import Applier
from hpcpod.images.unpacking.layers import check_space, write_error
from hpcpod.log import Progress


@contextmanager
def filling(
    directory: str, sizes: tuple[int, int], limits: Limits, progress: Progress, readable: int = 0
) -> Iterator[Applier]:
    """Give an Applier on the empty directory; directories get their modes when the body ends well.

    sizes: the least bytes that this takes on the disk, for a refusal before work starts, and how many the
    progress will be told of, 0 for unknown.  readable: as for Applier.  On an error the directory holds part
    of a tree: the caller removes it.  Raises StoreFull, StoreUnusable, and what the body raises.
    """
    needed, total = sizes
    check_space(directory, needed)
    root = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    applier = Applier(root, limits, readable, progress.took)
    progress.begin("unpacking", total)
    try:
        yield applier
        applier.finish()
    except OSError as error:
        raise write_error(error, directory) from error
    finally:
        progress.end()
        applier.close()
        os.close(root)
