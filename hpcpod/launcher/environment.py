# SPDX-License-Identifier: Apache-2.0
"""The rank's environment: the node's, less what names files of the node, then the image's.  Pure.

Order, the later wins: what the rank inherits · minus LEFT_OUTSIDE · what the image sets · what the launch
needs (PMI) · ``--env``.
"""

from __future__ import annotations

from collections.abc import Sequence

from hpcpod.errors import UsageError
from hpcpod.model import EnvDefault, EnvKeep, EnvOp, EnvSet, EnvUnset, VerifiedImage

LEFT_OUTSIDE: tuple[str, ...] = (
    # the node's loader and its libraries
    "LD_*",
    "GCONV_PATH",
    "LOCPATH",
    "NLSPATH",
    # the node's interpreters and where they look for modules
    "PYTHON*",
    "VIRTUAL_ENV",
    "CONDA_*",
    "PERL5LIB",
    "PERL5OPT",
    "PERLLIB",
    "RUBYLIB",
    "RUBYOPT",
    "R_LIBS*",
    "JULIA_*",
    "LUA_*",
    "CLASSPATH",
    "PKG_CONFIG*",
    "CMAKE_PREFIX_PATH",
    # the node's shells: start-up files, exported functions, environment modules
    "BASH_ENV",
    "BASH_FUNC_*",
    "ENV",
    "MODULEPATH*",
    "MODULESHOME",
    "LOADEDMODULES",
    "_LMFILES_*",
    "LMOD_*",
    # sockets and folders that the pod does not have
    "XDG_RUNTIME_DIR",
    "DBUS_SESSION_BUS_ADDRESS",
    "SSH_AUTH_SOCK",
)

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def _parse_env(word: str) -> EnvSet | EnvKeep:
    """``NAME=VALUE``, or ``NAME`` alone: keep what the rank inherits."""
    name, equals, value = word.partition("=")
    if not name or name[0].isdigit() or not all(c.isalnum() or c == "_" for c in name):
        raise UsageError(f"option --env {word}: {name or 'nothing'} is not a variable's name")
    return EnvSet(name, value) if equals else EnvKeep(name)


def environment_ops(image: VerifiedImage, launch: Sequence[EnvOp], asked: Sequence[str]) -> tuple[EnvOp, ...]:
    """All operations, in order.  asked: the words of ``--env``.  Raises UsageError."""
    parsed = [_parse_env(word) for word in asked]
    kept = {item.name for item in parsed if isinstance(item, EnvKeep)}
    image_env = {"PATH": DEFAULT_PATH, **dict(image.config.env)}
    return (
        *(item for item in parsed if isinstance(item, EnvKeep)),
        *(EnvUnset(pattern) for pattern in LEFT_OUTSIDE),
        *(EnvSet(name, value) for name, value in image_env.items() if name not in kept),
        EnvSet("HPCPOD_IMAGE", image.reference),
        EnvSet("HPCPOD_DIGEST", image.digest),
        EnvDefault("HOME", "/"),
        *launch,
        *(item for item in parsed if isinstance(item, EnvSet)),
    )
