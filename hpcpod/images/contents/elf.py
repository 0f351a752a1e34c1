# SPDX-License-Identifier: Apache-2.0
"""What an ELF file needs: interpreter, libraries, search paths.  elf(5), System V gABI chapter 5.

The files come from images, so nothing in them is believed: every count, offset and length is held
against a limit and against the file's size before it is used.
"""

from __future__ import annotations

import os
import struct

from hpcpod.frozen import frozen

MACHINES = {62: "amd64", 183: "arm64"}
"""EM_X86_64 and EM_AARCH64, in the names that images use."""

MAX_SEGMENTS = 256
MAX_DYNAMIC = 4096
MAX_NEEDED = 256
MAX_NAME = 4096

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SEGMENT = struct.Struct("<IIQQQQQQ")
_DYNAMIC = struct.Struct("<qQ")
_PT_LOAD, _PT_DYNAMIC, _PT_INTERP = 1, 2, 3
_DT_NULL, _DT_NEEDED, _DT_STRTAB, _DT_STRSZ, _DT_SONAME, _DT_RPATH, _DT_RUNPATH = 0, 1, 5, 10, 14, 15, 29


class ElfMalformed(ValueError):
    """The file starts like ELF but breaks its rules, or is of a kind that this program does not run."""


@frozen
class Elf:
    """The dynamic linker's view of one file.

    machine: ``amd64``, ``arm64`` or the number of another.  interpreter: empty for a library or a static
    program.  runpath: the directories of DT_RUNPATH, or of DT_RPATH where that is absent, unexpanded.
    """

    machine: str
    interpreter: str
    soname: str
    needed: tuple[str, ...]
    runpath: tuple[str, ...]


@frozen
class _Segment:
    kind: int
    offset: int
    address: int
    size: int


def read_elf(fd: int) -> Elf | None:
    """Read the open file; None where it is no ELF file.  Raises ElfMalformed, OSError."""
    head = os.pread(fd, _HEADER.size, 0)
    if head[:4] != b"\x7fELF":
        return None
    if len(head) < _HEADER.size or head[4] != 2 or head[5] != 1:
        raise ElfMalformed("not a 64-bit little-endian ELF file")
    _, _, machine, _, _, offset, _, _, _, entry_size, entries, _, _, _ = _HEADER.unpack(head)
    if entries and entry_size != _SEGMENT.size:
        raise ElfMalformed(f"program headers of {entry_size} bytes, expected {_SEGMENT.size}")
    if entries > MAX_SEGMENTS:
        raise ElfMalformed(f"{entries} program headers, at most {MAX_SEGMENTS} expected")
    segments = _segments(_exactly(fd, entries * _SEGMENT.size, offset))
    interpreter = next((s for s in segments if s.kind == _PT_INTERP), None)
    dynamic = next((s for s in segments if s.kind == _PT_DYNAMIC), None)
    needed, soname, runpath = _linking(fd, segments, dynamic) if dynamic else ((), "", ())
    return Elf(
        machine=MACHINES.get(machine, str(machine)),
        interpreter=_text(fd, interpreter.offset, interpreter.size) if interpreter else "",
        soname=soname,
        needed=needed,
        runpath=runpath,
    )


def _exactly(fd: int, size: int, offset: int) -> bytes:
    if offset > os.fstat(fd).st_size:
        raise ElfMalformed("offset past the end of the file")
    data = os.pread(fd, size, offset)
    if len(data) != size:
        raise ElfMalformed("truncated")
    return data


def _text(fd: int, offset: int, limit: int) -> str:
    """The NUL-terminated bytes at offset, at most limit and MAX_NAME of them."""
    if offset > os.fstat(fd).st_size:
        raise ElfMalformed("a name past the end of the file")
    text, nul, _ = os.pread(fd, min(limit, MAX_NAME), offset).partition(b"\0")
    if not nul:
        raise ElfMalformed("a name without an end")
    return os.fsdecode(text)


def _segments(table: bytes) -> tuple[_Segment, ...]:
    return tuple(
        _Segment(kind, offset, address, size)
        for kind, _, offset, address, _, size, _, _ in _SEGMENT.iter_unpack(table)
    )


def _file_offset(segments: tuple[_Segment, ...], address: int) -> int:
    for s in segments:
        if s.kind == _PT_LOAD and s.address <= address < s.address + s.size:
            return s.offset + address - s.address
    raise ElfMalformed("string table outside all segments")


def _linking(
    fd: int, segments: tuple[_Segment, ...], dynamic: _Segment
) -> tuple[tuple[str, ...], str, tuple[str, ...]]:
    """(needed libraries, soname, run path) of the dynamic section."""
    size = min(dynamic.size, MAX_DYNAMIC * _DYNAMIC.size)
    entries: list[tuple[int, int]] = []
    for tag, value in _DYNAMIC.iter_unpack(_exactly(fd, size - size % _DYNAMIC.size, dynamic.offset)):
        if tag == _DT_NULL:
            break
        entries.append((tag, value))
    values = dict(entries)
    if _DT_STRTAB not in values:
        return (), "", ()
    table = _file_offset(segments, values[_DT_STRTAB])
    length = values.get(_DT_STRSZ, 0)

    def name(at: int) -> str:
        if at >= length:
            raise ElfMalformed("a name outside the string table")
        return _text(fd, table + at, length - at)

    wanted = [value for tag, value in entries if tag == _DT_NEEDED]
    if len(wanted) > MAX_NEEDED:
        raise ElfMalformed(f"{len(wanted)} needed libraries, at most {MAX_NEEDED} expected")
    path = values.get(_DT_RUNPATH, values.get(_DT_RPATH))
    return (
        tuple(name(value) for value in wanted),
        name(values[_DT_SONAME]) if _DT_SONAME in values else "",
        tuple(part for part in name(path).split(":") if part) if path is not None else (),
    )
