# SPDX-License-Identifier: Apache-2.0
"""Decompress single blocks of file system images: all of a block is at hand, and its plain size is bounded.

Layers are streams, which decompress.py reads.  A block that yields more than it may, or is not whole, is an
error.  LZO is not read: the one binding to its library is not maintained.
"""

from __future__ import annotations

from typing import cast

from hpcpod.errors import ImageInvalid, ImageUnsupported
from hpcpod.images.limits import Limits

TYPE_CHECKING = False  # importing typing would be a sixth of a preparation's start (docs/adr/0005)
if TYPE_CHECKING:
    from collections.abc import Callable

    Codec = Callable[[bytes, int], bytes]

_RAW_DEFLATE = -15
_ZLIB = 15
_LZMA_PROPERTIES = 9 * 5 * 5
"""lc, lp and pb in one byte: (pb * 5 + lp) * 9 + lc (LZMA specification)."""
_LZMA_DICTIONARY = 8 << 20
"""The largest of EROFS (erofs_fs.h)."""


def codec(what: str, name: str, limits: Limits) -> Codec:
    """What turns a block into its plain bytes, at most that many.  Raises ImageUnsupported, ImageInvalid.

    what: names format and compression in errors.  name: zlib, deflate (without header and checksum), xz,
    microlzma, zstd, lz4.
    """
    if name in ("zlib", "deflate"):
        bits = _ZLIB if name == "zlib" else _RAW_DEFLATE
        return lambda raw, longest: _inflate(raw, longest, bits, what)
    if name == "xz":
        return lambda raw, longest: _unxz(raw, longest, limits.zstd_window, what)
    if name == "microlzma":
        return lambda raw, longest: _unlzma(raw, longest, what)
    if name == "zstd":
        return lambda raw, longest: _unzstd(raw, longest, limits.zstd_window, what)
    if name == "lz4":
        return lambda raw, longest: _unlz4(raw, longest, what)
    raise ImageUnsupported(
        f"{what} compression is not read", hint="gzip, xz, lz4 and zstd are: mksquashfs -comp zstd"
    )


def _inflate(raw: bytes, longest: int, bits: int, what: str) -> bytes:
    from isal import isal_zlib

    broken = cast("type[Exception]", isal_zlib.error)
    stream = isal_zlib.decompressobj(wbits=bits)
    try:
        data: bytes = stream.decompress(raw, longest)
        whole = stream.eof or not stream.decompress(b"", 1)
    except broken as error:
        raise ImageInvalid(f"{what}: broken: {error}") from None
    if not stream.eof or not whole:
        raise ImageInvalid(f"{what}: a block that is too long or not whole")
    return data


def _unxz(raw: bytes, longest: int, memory: int, what: str) -> bytes:
    import lzma

    stream = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=memory)
    try:
        data = stream.decompress(raw, longest)
        if not stream.eof and stream.decompress(b"", 1):
            raise ImageInvalid(f"{what}: a block that is too long")
    except lzma.LZMAError as error:
        raise ImageInvalid(f"{what}: broken: {str(error)[:60].lower()}") from None
    if not stream.eof:
        raise ImageInvalid(f"{what}: a block that is not whole")
    return data


def _unlzma(raw: bytes, longest: int, what: str) -> bytes:
    """ "MicroLZMA" of XZ Utils: the first byte of LZMA, which is always 0, gives way to the properties.

    There is no mark of the end, so the plain size must be known.
    """
    import lzma

    properties = ~raw[0] & 0xFF if raw else _LZMA_PROPERTIES
    if properties >= _LZMA_PROPERTIES:
        raise ImageInvalid(f"{what}: broken: properties {properties}")
    rest, lc = divmod(properties, 9)
    pb, lp = divmod(rest, 5)
    if lc + lp > 4:  # XZ Utils: LZMA_LCLP_MAX
        raise ImageInvalid(f"{what}: broken: properties {properties}")
    chain = [{"id": lzma.FILTER_LZMA1, "lc": lc, "lp": lp, "pb": pb, "dict_size": _LZMA_DICTIONARY}]
    try:
        stream = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=chain)
        return stream.decompress(b"\0" + raw[1:], longest)
    except lzma.LZMAError as error:
        raise ImageInvalid(f"{what}: broken: {str(error)[:60].lower()}") from None


def _unzstd(raw: bytes, longest: int, window: int, what: str) -> bytes:
    import zstandard

    try:
        decompressor = zstandard.ZstdDecompressor(max_window_size=max(window, 1024))
        data = decompressor.stream_reader(raw).read(longest + 1)
    except zstandard.ZstdError as error:
        raise ImageInvalid(f"{what}: broken: {str(error)[:60].lower()}") from None
    if len(data) > longest:
        raise ImageInvalid(f"{what}: a block that is too long")
    return data


def _unlz4(raw: bytes, longest: int, what: str) -> bytes:
    import lz4.block

    try:
        data: bytes = lz4.block.decompress(raw, uncompressed_size=longest)
    except (lz4.block.LZ4BlockError, ValueError) as error:
        raise ImageInvalid(f"{what}: broken: {str(error)[:60].lower()}") from None
    return data
