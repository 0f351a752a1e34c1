# SPDX-License-Identifier: Apache-2.0
"""Configuration of registries where other tools keep it: found, read, handed to the pure parsers."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Mapping

from hpcpod.errors import HpcpodError, SystemRefused, UsageError
from hpcpod.images.sources.registry.authfile import AuthFile, parse_auth
from hpcpod.images.sources.registry.conf import RegistriesConf, merged, parse_conf
from hpcpod.images.sources.registry.lookaside import Lookasides, parse_lookasides
from hpcpod.images.sources.registry.lookaside import merged as merged_lookasides
from hpcpod.log import shown

LONGEST = 4 << 20
"""Bytes of a configuration file."""
FILES = 512
"""Drop-in files of one directory."""
SYSTEM = "/etc/containers"
_ABSENT = (errno.ENOENT, errno.ENOTDIR)


def read_config(path: str) -> bytes | None:
    """The bytes of a file; None for one that is not there.  Raises UsageError, SystemRefused."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in _ABSENT:
            return None
        raise unreadable(path, error) from None
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise UsageError(f"{shown(path)}: not a regular file")
        with os.fdopen(os.dup(fd), "rb") as file:
            raw = file.read(LONGEST + 1)
    except OSError as error:
        raise unreadable(path, error) from None
    finally:
        os.close(fd)
    if len(raw) > LONGEST:
        raise UsageError(f"{shown(path)}: longer than {LONGEST} bytes")
    return raw


def unreadable(path: str, error: OSError) -> HpcpodError:
    """The error for a file that is there and cannot be read."""
    code = errno.errorcode.get(error.errno or 0, "error")
    kind = (
        UsageError if error.errno in (errno.EACCES, errno.EPERM, errno.ELOOP, errno.EISDIR) else SystemRefused
    )
    return kind(f"{shown(path)}: cannot be read ({code})")


def user_config(environment: Mapping[str, str]) -> str:
    """The user's directory of containers' configuration; empty where there is no home."""
    base = environment.get("XDG_CONFIG_HOME") or (
        f"{environment['HOME']}/.config" if environment.get("HOME") else ""
    )
    return f"{base}/containers" if base.startswith("/") else ""


def drop_ins(directory: str, ending: str) -> tuple[str, ...]:
    """The files of a directory with this ending, sorted.  Raises UsageError, SystemRefused."""
    try:
        names = sorted(name for name in os.listdir(directory) if name.endswith(ending))
    except OSError as error:
        if error.errno in _ABSENT:
            return ()
        raise unreadable(directory, error) from None
    if len(names) > FILES:
        raise UsageError(f"{shown(directory)}: {len(names)} files, at most {FILES}")
    return tuple(f"{directory}/{name}" for name in names if not os.path.isdir(f"{directory}/{name}"))


def read_registries(environment: Mapping[str, str]) -> RegistriesConf:
    """What containers-registries.conf(5) and its drop-ins say.  Raises UsageError, SystemRefused.

    $CONTAINERS_REGISTRIES_CONF names a file that alone counts.  A user's file takes the place of the system's
    and of its drop-ins (containers-registries.conf.d(5)).  Names that other tools learned come last.
    """
    named = environment.get("CONTAINERS_REGISTRIES_CONF", "")
    if named:
        raw = read_config(named)
        if raw is None:
            raise UsageError(f"{shown(named)}: not there (ENOENT); CONTAINERS_REGISTRIES_CONF names it")
        return merged([parse_conf(raw, named)])
    user = user_config(environment)
    paths = [f"{user}/registries.conf"] if user and os.path.exists(f"{user}/registries.conf") else []
    if not paths:
        paths = [f"{SYSTEM}/registries.conf", *drop_ins(f"{SYSTEM}/registries.conf.d", ".conf")]
    if user:
        paths += drop_ins(f"{user}/registries.conf.d", ".conf")
    files = [(path, read_config(path)) for path in (*paths, *_learned(environment))]
    return merged([parse_conf(raw, path) for path, raw in files if raw is not None])


def _learned(environment: Mapping[str, str]) -> tuple[str, ...]:
    """Where other tools write what a short name was chosen to mean."""
    if os.geteuid() == 0:
        return ("/var/cache/containers/short-name-aliases.conf",)
    base = environment.get("XDG_CACHE_HOME") or (
        f"{environment['HOME']}/.cache" if environment.get("HOME") else ""
    )
    return (f"{base}/containers/short-name-aliases.conf",) if base.startswith("/") else ()


def read_lookasides(environment: Mapping[str, str]) -> Lookasides:
    """What containers-registries.d(5) says: the user's directory, or the system's.  Raises TrustUnusable."""
    user = user_config(environment)
    directory = (
        f"{user}/registries.d" if user and os.path.isdir(f"{user}/registries.d") else f"{SYSTEM}/registries.d"
    )
    found = []
    for path in drop_ins(directory, ".yaml"):
        raw = read_config(path)
        if raw is not None:
            found.append((path, parse_lookasides(raw, path)))
    return merged_lookasides(found)


def built_in_lookaside(environment: Mapping[str, str]) -> str:
    """Where signatures lie that a tool on this machine made, unless registries.d says another place."""
    if os.geteuid() == 0:
        return "file:///var/lib/containers/sigstore"
    home = environment.get("HOME", "")
    return f"file://{home}/.local/share/containers/sigstore" if home.startswith("/") else ""


def read_auth_files(environment: Mapping[str, str]) -> tuple[tuple[str, AuthFile], ...]:
    """The files that may hold credentials, in the order of looking.  Raises UsageError, SystemRefused."""
    found = []
    for path, legacy in _auth_paths(environment):
        raw = read_config(path)
        if raw is not None and raw.strip():
            found.append((path, parse_auth(raw, path, legacy=legacy)))
    return tuple(found)


def _auth_paths(environment: Mapping[str, str]) -> list[tuple[str, bool]]:
    """containers-auth.json(5), with what $DOCKER_CONFIG moves."""
    named = environment.get("REGISTRY_AUTH_FILE", "")
    if named:
        if not os.path.exists(named):
            raise UsageError(f"{shown(named)}: not there (ENOENT); REGISTRY_AUTH_FILE names it")
        return [(named, False)]
    runtime = environment.get("XDG_RUNTIME_DIR") or f"/run/containers/{os.geteuid()}"
    home, user = environment.get("HOME", ""), user_config(environment)
    docker = environment.get("DOCKER_CONFIG") or (f"{home}/.docker" if home else "")
    paths = [(f"{runtime}/containers/auth.json", False)]
    if not environment.get("XDG_RUNTIME_DIR"):
        paths = [(f"{runtime}/auth.json", False)]
    paths += [(f"{user}/auth.json", False)] if user else []
    paths += [(f"{docker}/config.json", False)] if docker else []
    paths += [(f"{home}/.dockercfg", True)] if home else []
    return paths
