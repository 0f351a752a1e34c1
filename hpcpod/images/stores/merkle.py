# SPDX-License-Identifier: Apache-2.0
"""A packed file's Merkle tree: one root that dm-verity, fs-verity and this program's own comparison share.

The tree is that of dm-verity, hash format 1 (Linux, Documentation/admin-guide/device-mapper/verity.rst):
SHA-256 of blocks of 4 KiB, 128 digests in a hash block, the level of one block first, no salt.  Without a
salt fs-verity (Documentation/filesystems/fsverity.rst) builds the same tree, so the digest that it measures
follows from the root and the file's size.  A salt would protect against nothing here: whoever finds two
blocks of one SHA-256 has won with a salt as well.  Pure.
"""

from __future__ import annotations

import struct

from hpcpod.images.stores.seal import sha256_quick

BLOCK = 4096
"""Bytes of a data block and of a hash block."""
SALT = "-"
"""What dm-verity's table says for none."""
DIGEST = 32
_SECTOR = 512
_FAN = BLOCK // DIGEST
_FSVERITY_VERSION, _SHA256, _LOG_BLOCK = 1, 1, 12


def blocks_of(size: int) -> int:
    """Data blocks of a file of size bytes; the last may be cut short."""
    return -(-size // BLOCK)


def tree_of(leaves: bytes) -> tuple[str, bytes]:
    """The root, hexadecimal, and the hash blocks above these digests of the data blocks, one at least.

    The root of a single data block is its digest, and no hash block is needed.
    """
    from hashlib import sha256  # much faster than what seal.py takes, where it is worth loading

    levels: list[bytes] = []
    digests = leaves
    while len(digests) > DIGEST:
        level = digests + bytes(-len(digests) % BLOCK)
        levels.append(level)
        view = memoryview(level)
        starts = range(0, len(level), BLOCK)
        digests = b"".join([sha256(view[start : start + BLOCK]).digest() for start in starts])
    return digests.hex(), b"".join(reversed(levels))


def tree_size(size: int) -> int:
    """Bytes of the hash blocks of a file of size bytes."""
    total, count = 0, blocks_of(size)
    while count > 1:
        count = -(-count // _FAN)
        total += count * BLOCK
    return total


def leaves_in(tree: bytes, size: int) -> bytes:
    """The digests of the data blocks, from a file's hash blocks: the last level."""
    count = blocks_of(size) * DIGEST
    start = len(tree) - count - (-count % BLOCK)
    return tree[start : start + count]


def measurement(root: str, size: int) -> str:
    """What FS_IOC_MEASURE_VERITY says of the file, hexadecimal: SHA-256 of struct fsverity_descriptor.

    Version, algorithm, block size, lengths of salt and signature, size, root (64 bytes), salt, reserved.
    """
    numbers = struct.pack("<BBBBIQ", _FSVERITY_VERSION, _SHA256, _LOG_BLOCK, 0, 0, size)
    return sha256_quick(numbers + bytes.fromhex(root).ljust(64, b"\0") + bytes(32 + 144)).hexdigest()


def table(root: str, size: int, data: str, hashes: str) -> tuple[int, str]:
    """Length in sectors, and parameters, of the dm-verity target over two devices, ``MAJOR:MINOR`` each.

    A block that is not what was hashed is an I/O error for who reads it, and nothing else happens: no option
    that restarts or panics the node, none that checks a block only once.
    """
    count = blocks_of(size)
    return (
        count * BLOCK // _SECTOR,
        f"1 {data} {hashes} {BLOCK} {BLOCK} {count} 0 sha256 {root} {SALT}",
    )
