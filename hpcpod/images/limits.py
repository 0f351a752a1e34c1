# SPDX-License-Identifier: Apache-2.0
"""Bounds on what an image may ask of this machine.

The defaults pass the large images of HPC (tens of GB, millions of files) and stop what no real image
has.  All are counted while streaming: work stops at the limit, not after it.
"""

from __future__ import annotations

from hpcpod.errors import UsageError
from hpcpod.frozen import frozen, replace
from hpcpod.settings import Settings

MIB = 1 << 20
GIB = 1 << 30
NAME_COST = 250
"""Bytes that a name kept with a value takes beside its own, about."""
MARK_COST = 16
"""Bytes that the mark of a name takes, about, however long the name is (unpacking/marks.py)."""


@frozen
class Limits:
    """Largest permitted values; a message that names one says which.

    bytes_out: of all layers after decompression, tar headers and padding included (``--max-bytes``).
    entries: tar entries of all layers.  file_bytes: apparent size of one file.
    directories: made for them, named by an entry or not, those included that were removed again.
    names_bytes: memory for marks of all that the present layer, unless it is the lowest, has made, which its
    whiteouts must leave alone: MARK_COST for each.  names_disk: a file for the names of directories, whose
    modes are set last, beyond the few megabytes that are held in memory.
    path_bytes, path_depth: of a name, and of the place that symlinks lead it to.
    name_bytes: one component (NAME_MAX).  link_bytes: target of a symlink (PATH_MAX - 1).
    header_bytes: pax and GNU long-name data before one entry.  pax_records: in one pax header.
    json_bytes, json_depth, json_digits: index, manifest and config documents.
    layers: of one manifest.  descriptors, documents: looked at while walking nested indexes.
    index_depth: nesting of indexes.  zstd_window: bytes of memory that a frame may demand.
    empty_frames: gzip members or zstd frames of one layer that yield nothing.
    archive_members: entries of an oci-archive file.  config_words, config_bytes: environment, arguments,
    labels and volumes of a configuration.
    """

    bytes_out: int = 512 * GIB
    entries: int = 20_000_000
    directories: int = 4_000_000
    names_bytes: int = 96 * MIB
    names_disk: int = 4 * GIB
    file_bytes: int = 512 * GIB
    path_bytes: int = 4095
    path_depth: int = 200
    name_bytes: int = 255
    link_bytes: int = 4095
    header_bytes: int = MIB
    pax_records: int = 1024
    json_bytes: int = 4 * MIB
    json_depth: int = 32
    json_digits: int = 19
    layers: int = 512
    descriptors: int = 4096
    documents: int = 64
    index_depth: int = 4
    zstd_window: int = 128 * MIB
    empty_frames: int = 4096
    archive_members: int = 100_000
    config_words: int = 65_536
    config_bytes: int = 2 * MIB


DEFAULT_LIMITS = Limits()


def configured(settings: Settings) -> Limits:
    """The limits with the fields that a site changed ([limits] of hpcpod.toml).  Raises UsageError."""
    if not settings.limits:
        return DEFAULT_LIMITS
    for name, _ in settings.limits:
        if name not in Limits.__match_args__:
            raise UsageError(
                f"configuration {settings.stamp.path if settings.stamp else ''}: [limits] {name}: unknown",
                hint=f"limits are: {', '.join(Limits.__match_args__)}",
            )
    return replace(DEFAULT_LIMITS, **dict(settings.limits))
