# SPDX-License-Identifier: Apache-2.0
"""Reading the facts that planning needs: the user, the inside of the image, this installation."""

from __future__ import annotations

import grp
import os
import pwd
import sys
from collections.abc import Mapping

from hpcpod.images.sources.layout import stamp_of
from hpcpod.launcher.plan import NodePaths, UserFacts
from hpcpod.model import FileStamp, StepContext
from hpcpod.scheduler_plugins.slurm import pmix

_CONFIGURATION_MAX = 1 << 20
"""Characters read of a scheduler's configuration file."""


def _group_name(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:  # the node's user database need not know every id that the scheduler uses
        return f"g{gid}"


def user_facts(environment: Mapping[str, str]) -> UserFacts:
    """Who runs this, by the node's user database, else by the environment."""
    uid, gid = os.getuid(), os.getgid()
    try:
        entry = pwd.getpwuid(uid)
        name, home, shell = entry.pw_name, entry.pw_dir, entry.pw_shell
    except KeyError:
        name, home, shell = environment.get("USER", ""), "", "/bin/sh"
        if not name or set(name) & set(":\n"):  # it becomes a field of a passwd file
            name = f"u{uid}"
    home = environment.get("HOME") or home
    groups = dict.fromkeys([gid, *os.getgroups()])
    return UserFacts(
        uid=uid,
        gid=gid,
        name=name,
        home=home if home.startswith("/") and os.path.isdir(home) else None,
        shell=shell or "/bin/sh",
        groups=tuple((number, _group_name(number)) for number in groups),
    )


def _configuration(path: str) -> str:
    try:
        with open(path, errors="surrogateescape") as file:
            return file.read(_CONFIGURATION_MAX)
    except OSError:  # no such file, or not for us: its defaults hold
        return ""


def _pmix_directory(context: StepContext) -> str | None:
    files = pmix.configuration(context.environment)
    if files is None:
        return None
    return pmix.client_directory(_configuration(files[0]), _configuration(files[1]), context.node)


def node_paths(runtime: str, context: StepContext) -> NodePaths:
    """The front stands beside the interpreter that it starts (native/python.c)."""
    return NodePaths(
        front=os.path.join(os.path.dirname(sys.executable), "hpcpod"),
        events=os.path.join(runtime, "events"),
        pmix=_pmix_directory(context),
    )


def stamp(path: str) -> FileStamp:
    """The identity of this file now.  Raises OSError."""
    return stamp_of(path, os.stat(path))
