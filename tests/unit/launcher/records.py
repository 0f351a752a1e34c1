# SPDX-License-Identifier: Apache-2.0
"""A reader of sealed records in Python, written from native/record.c's grammar and not from the writer."""

from __future__ import annotations

from collections.abc import Iterator

from hpcpod.model import (
    Bind,
    BindFromEnv,
    EnvDefault,
    EnvKeep,
    EnvOp,
    EnvSet,
    EnvUnset,
    FileStamp,
    GeneratedFile,
    Mount,
    Shield,
    Tmpfs,
)

GRAMMAR = {
    "guard": 6, "rootfs": 3, "fuse": 5, "writable": 1, "bind": 3, "bind-env": 1, "tmpfs": 3, "file": 2,
    "env-set": 2, "env-default": 2, "env-unset": 1, "env-keep": 1, "workdir": 1, "command": 1, "launch": 1,
    "seccomp": 1, "pmi-check": 1, "pmi-accept": 1, "reference": 1, "digest": 1, "shield": 2, "keep-fds": 1,
    "end": 0,
}  # fmt: skip


def operations(record: bytes) -> Iterator[tuple[str, list[str]]]:
    """Name and words of each operation.  AssertionError where it is not a record."""
    assert record.endswith(b"\0")
    words = [word.decode("utf-8", "surrogateescape") for word in record[:-1].split(b"\0")]
    assert words[:2] == ["hpcpod-record", "1"]
    at = 2
    while True:
        name = words[at]
        count = GRAMMAR[name]
        assert at + count < len(words)
        yield name, words[at + 1 : at + 1 + count]
        at += 1 + count
        if name == "end":
            break
    assert at == len(words)


def mounts(record: bytes) -> tuple[Mount, ...]:
    """The mounts of a record, as the plan had them."""
    found: list[Mount] = []
    for name, words in operations(record):
        match name, words:
            case "bind", [source, target, flags]:
                options = set(flags.split(",")) - {""}
                assert options <= {"ro", "optional"}
                found.append(Bind(source, target, read_only="ro" in options, optional="optional" in options))
            case "bind-env", [variable]:
                found.append(BindFromEnv(variable))
            case "tmpfs", [target, mode, size]:
                found.append(Tmpfs(target, int(mode, 8), int(size)))
            case "shield", [target, extent]:
                assert extent in {"whole", "below"}
                found.append(Shield(target, whole=extent == "whole"))
            case "file", [target, content]:
                found.append(GeneratedFile(target, content))
    return tuple(found)


def environment(record: bytes) -> tuple[EnvOp, ...]:
    """The operations on the environment of a record, as the plan had them."""
    kinds = {"env-set": EnvSet, "env-default": EnvDefault, "env-unset": EnvUnset, "env-keep": EnvKeep}
    return tuple(kinds[name](*words) for name, words in operations(record) if name in kinds)


def values(record: bytes, wanted: str) -> tuple[str, ...]:
    """The first words of all operations of this name."""
    return tuple(words[0] for name, words in operations(record) if name == wanted)


def with_root(record: bytes, *root: str) -> bytes:
    """The same record with another root: the words of a ``rootfs`` or a ``fuse`` operation."""
    words = ["hpcpod-record", "1"]
    for name, values_ in operations(record):
        words += root if name in {"rootfs", "fuse"} else [name, *values_]
    return b"".join(word.encode("utf-8", "surrogateescape") + b"\0" for word in words)


def guards(record: bytes) -> tuple[FileStamp, ...]:
    """The guards of a record."""
    return tuple(
        FileStamp(words[0], *map(int, words[1:])) for name, words in operations(record) if name == "guard"
    )
