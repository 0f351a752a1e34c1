# SPDX-License-Identifier: Apache-2.0
"""How to run a tree that has no image configuration: what its maker left in it, as an image-spec one.  Pure.

Three makers do.  Apptainer: ``/.singularity.d`` (its documentation, "The Definition File").  Charliecloud:
``/ch/metadata.json`` and ``/ch/environment`` (ch-run(1)).  Enroot: ``/etc/rc``, ``/etc/environment`` and
``/etc/fstab`` (doc/image-format.md).  No script of theirs is run here, and none is run outside a pod.
"""

from __future__ import annotations

import json

from hpcpod.errors import ImageInvalid
from hpcpod.frozen import frozen
from hpcpod.images.limits import Limits
from hpcpod.images.sources.shellenv import Assignments
from hpcpod.images.strictjson import Fields, parse_object
from hpcpod.log import shown
from hpcpod.model import Platform

TYPE_CHECKING = False  # importing typing would be a sixth of a preparation's start (docs/adr/0005)
if TYPE_CHECKING:
    from typing import Protocol
else:
    Protocol = object

Notes = tuple[tuple[str, tuple[str, ...]], ...]

_SINGULARITY = "/.singularity.d"
_RUNSCRIPT = f"{_SINGULARITY}/runscript"
_OWN_SCRIPTS = ("01-base.sh", "94-appsbase.sh", "95-apps.sh", "99-base.sh", "99-runtimevars.sh")
"""Scripts that every such image has: they set up Apptainer's own options, which a pod does not have."""
_KNOWN = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LD_LIBRARY_PATH": ""}
"""What a pod's program has of these without the image."""
_SOURCED = (
    f'for script in {_SINGULARITY}/env/*.sh; do [ -r "$script" ] && . "$script"; done; exec {_RUNSCRIPT} "$@"'
)
_RC = "/etc/rc"
_RC_WORKDIR = ('cd "', '" && unset OLDPWD || exit 1')
_RC_ORIGIN = "# enroot-provenance: "
_METADATA = "/ch/metadata.json"
_ARCHITECTURES = {"386", "amd64", "arm64", "ppc64le", "s390x", "riscv64", "loong64"}
"""Of Charliecloud's metadata, those that are Go's names, too; others are not looked at."""
_QUOTES = "\"'"
_NAME = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_0123456789")


class Files(Protocol):
    """The files of a tree, by paths inside it; links lead nowhere else."""

    def read(self, path: str, limit: int) -> bytes | None:
        """The first limit bytes of a regular file; None where there is none."""

    def names(self, path: str) -> list[str]:
        """Names in a directory, sorted; none where there is no directory."""


@frozen
class TreeConfig:
    """fields: of an image-spec configuration's ``config``.  notes: what cannot be said in one, for people.

    architecture: Go's name, empty where the tree does not say.
    """

    fields: dict[str, object]
    notes: Notes = ()
    architecture: str = ""


def config_bytes(platform: Platform, fields: dict[str, object]) -> bytes:
    """The image-spec configuration that a store keeps of a tree without layers."""
    document = {
        "os": platform.os,
        "architecture": platform.architecture,
        "variant": platform.variant,
        "config": fields,
        "rootfs": {"type": "layers", "diff_ids": []},
    }
    return json.dumps(document, indent=1).encode() + b"\n"


def read_config(files: Files, limits: Limits) -> TreeConfig:
    """What the tree says of itself; nothing for a plain tree.  Raises ImageInvalid, ImageLimitExceeded."""
    if files.names(_SINGULARITY):
        return _apptainer(files, limits)
    if files.read(_METADATA, 1) is not None:
        return _charliecloud(files, limits)
    return _enroot(files, limits)


def _text(files: Files, path: str, limits: Limits) -> str | None:
    raw = files.read(path, limits.config_bytes + 1)
    if raw is None:
        return None
    if len(raw) > limits.config_bytes:
        raise ImageInvalid(f"{shown(path)}: more bytes than limit config_bytes {limits.config_bytes}")
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise ImageInvalid(f"{shown(path)}: not UTF-8 at byte {error.start}") from None


# --------------------------------------------------------------------------- Apptainer


def _apptainer(files: Files, limits: Limits) -> TreeConfig:
    read, unread = Assignments(_KNOWN), []
    for name in files.names(f"{_SINGULARITY}/env"):
        if not name.endswith(".sh") or name in _OWN_SCRIPTS:
            continue
        line = read.read(_text(files, f"{_SINGULARITY}/env/{name}", limits) or "")
        if line:
            unread.append(f"{shown(name)} from line {line} on is for a shell: only the run script sees it")
    fields = _with(
        {}, "Env", [f"{name}={value}" for name, value in read.exported.items() if "\0" not in value]
    )
    if files.read(_RUNSCRIPT, 1) is not None:
        shell = ["/bin/sh", "-c", _SOURCED, _RUNSCRIPT]
        fields["Entrypoint"] = shell if unread else [_RUNSCRIPT]
    raw = files.read(f"{_SINGULARITY}/labels.json", limits.json_bytes + 1)
    if raw:
        labels = Fields({"labels": parse_object(raw, "labels.json", limits)}, "labels.json")
        fields["Labels"] = dict(labels.mapping("labels"))
    apps = tuple(shown(name) for name in files.names("/scif/apps"))
    notes = (("environment", tuple(unread)), ("apps", tuple(f"{name}: not started by name" for name in apps)))
    return TreeConfig(fields, tuple(note for note in notes if note[1]))


# --------------------------------------------------------------------------- Charliecloud


def _charliecloud(files: Files, limits: Limits) -> TreeConfig:
    raw = files.read(_METADATA, limits.json_bytes + 1) or b""
    metadata = Fields(parse_object(raw, _METADATA, limits), _METADATA)
    environment = dict(metadata.mapping("env"))
    unread = []
    for number, line in enumerate((_text(files, "/ch/environment", limits) or "").split("\n"), 1):
        name, equals, value = line.partition("=")
        if not line:
            continue
        if not equals or not name or "\0" in line:
            unread.append(f"/ch/environment: line {number} is not NAME=VALUE")
            continue
        if len(value) > 1 and value[0] == value[-1] == "'":  # ch-run(1): one pair is taken off
            value = value[1:-1]
        environment[name] = value
    fields = _with({}, "Env", [f"{name}={value}" for name, value in environment.items() if name])
    if workdir := metadata.text("cwd", ""):
        fields["WorkingDir"] = workdir
    fields["Labels"] = dict(metadata.mapping("labels"))
    arch = metadata.text("arch", "")
    notes = (("environment", tuple(unread)),) if unread else ()
    return TreeConfig(fields, notes, arch if arch in _ARCHITECTURES else "")


# --------------------------------------------------------------------------- Enroot


def _enroot(files: Files, limits: Limits) -> TreeConfig:
    script = _text(files, _RC, limits)
    pairs, unread = _enroot_environment(_text(files, "/etc/environment", limits) or "")
    fields = _with({}, "Env", [f"{name}={value}" for name, value in pairs.items()])
    notes = [("environment", unread)]
    if script is not None:
        fields["Entrypoint"] = ["/bin/sh", _RC]
        start, end = _RC_WORKDIR
        for line in script.split("\n"):
            if line.startswith(start) and line.endswith(end):
                fields["WorkingDir"] = line[len(start) : -len(end)]
            if line.startswith(_RC_ORIGIN):
                notes.append(("origin", [shown(line.removeprefix(_RC_ORIGIN))]))
        if _mounts(_text(files, "/etc/fstab", limits) or ""):
            notes.append(("ignored", ["/etc/fstab: a pod mounts what --bind and the site say"]))
    return TreeConfig(fields, tuple((name, tuple(lines)) for name, lines in notes if lines))


def _enroot_environment(text: str) -> tuple[dict[str, str], list[str]]:
    """NAME=VALUE, one a line; what has no name is passed over, and one pair of quotes is taken off."""
    pairs: dict[str, str] = {}
    unread = []
    for line in text.split("\n"):
        name, equals, value = line.lstrip().partition("=")
        if not equals or not name or name[0].isdigit() or not _NAME.issuperset(name):
            continue
        if name.startswith("ENROOT_") or "\0" in value or value == f"${{{name}}}":
            continue  # the last: what the rank inherits anyhow
        bare = value.rstrip()
        if len(bare) > 1 and bare[0] in _QUOTES and bare[-1] in _QUOTES:
            value = bare[1:-1]
        if "${" in value:
            unread.append(f"{name} is made of the node's variables: left out")
            continue
        pairs[name] = value
    return pairs, unread


def _mounts(text: str) -> bool:
    return any(line.strip() and not line.lstrip().startswith("#") for line in text.split("\n"))


def _with(fields: dict[str, object], key: str, values: list[str]) -> dict[str, object]:
    return {**fields, key: values} if values else fields
