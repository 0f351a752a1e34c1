# SPDX-License-Identifier: Apache-2.0
"""A plan in plain words: what ``hpcpod plan`` prints for people.  Pure."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence

from hpcpod.log import shown, size
from hpcpod.model import (
    Bind,
    BindFromEnv,
    EnvDefault,
    EnvKeep,
    EnvOp,
    EnvSet,
    EnvUnset,
    FuseImage,
    GeneratedFile,
    Mount,
    NodePlan,
    RankPlan,
    Rootfs,
    Shield,
    Tmpfs,
    Tree,
)

Row = tuple[str, str]


def _bind(mount: Bind) -> str:
    source, target = shown(mount.source), shown(mount.target)
    path = source if mount.source == mount.target else f"{source} -> {target}"
    notes = [note for note, on in (("read-only", mount.read_only), ("if it exists", mount.optional)) if on]
    return f"{path} ({', '.join(notes)})" if notes else path


def _mount(mount: Bind | BindFromEnv | Tmpfs | GeneratedFile) -> Row:
    match mount:
        case Bind():
            return "bind", _bind(mount)
        case BindFromEnv():
            return "bind", f"${shown(mount.variable)} where it is set"
        case Tmpfs():
            amount = size(mount.size) if mount.size else "half of memory"
            return "tmpfs", f"{shown(mount.target)} {mount.mode:04o} ({amount})"
        case GeneratedFile():
            return "file", f"{shown(mount.target)} (made)"


def _mounts(mounts: Sequence[Mount]) -> Iterator[Row]:
    """All mounts in order, and in one row the places that no variable may hide."""
    shields: list[Shield] = []
    for mount in mounts:
        if isinstance(mount, Shield):
            shields.append(mount)
        else:
            yield _mount(mount)
    if shields:
        below = [shown(shield.target) for shield in shields if not shield.whole]
        alone = [shown(shield.target) for shield in shields if shield.whole]
        groups = [f"{' '.join(below)} and all below"] if below else []
        groups += [f"{' '.join(alone)} themselves"] if alone else []
        yield "kept", f"{'; '.join(groups)}: are the image's whatever TMPDIR says"


def _environment(operations: Sequence[EnvOp]) -> Iterator[Row]:
    """All operations in order, the names that are removed in one row."""
    removed = ", ".join(shown(op.pattern) for op in operations if isinstance(op, EnvUnset))
    for op in operations:
        match op:
            case EnvSet():
                yield "set", f"{shown(op.name)}={shown(op.value)}"
            case EnvDefault():
                yield "default", f"{shown(op.name)}={shown(op.value)}"
            case EnvKeep():
                yield "keep", shown(op.name)
            case EnvUnset():
                if removed:
                    yield "unset", removed
                removed = ""


def _rank(rank: RankPlan) -> Iterator[Row]:
    places = ["the current directory" if path == "." else shown(path) for path in rank.workdirs]
    yield "workdir", ", else ".join(places)
    command = (*rank.launch, *rank.command)
    none = "" if rank.command else "(none: the image names no program)"
    yield "command", " ".join(filter(None, [shlex.join(map(shown, command)), none]))
    yield "seccomp", f"{len(rank.seccomp) // 8} instructions" if rank.seccomp else "no filter"
    if rank.accepted is None:
        yield "mpi", "not checked"
    else:
        kinds = ", ".join(sorted(kind.value for kind in rank.accepted))
        yield "mpi", f"the image understands {kinds or 'no interface that is known'}"


def _rootfs(rootfs: Rootfs) -> str:
    match rootfs:
        case Tree():
            return shown(rootfs.path)
        case FuseImage():
            return f"{shown(rootfs.file)} (by {shown(rootfs.server)})"


def plan_lines(plan: NodePlan) -> list[str]:
    """A line for each thing that a run does, aligned."""
    writable = plan.pod.writable
    root = "read-only" if writable is None else f"writable in memory, {size(writable)} at most"
    rows = [
        ("image", shown(plan.image.reference)),
        ("digest", plan.image.digest),
        ("rootfs", _rootfs(plan.pod.rootfs)),
        ("root", root),
        *_mounts(plan.pod.mounts),
        *_environment(plan.rank.environment),
        *_rank(plan.rank),
    ]
    return [f"{name:<8} {text}" for name, text in rows]
