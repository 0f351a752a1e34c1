# SPDX-License-Identifier: Apache-2.0
"""The rank's environment: the node's, less what names files of the node, then the image's.  Pure.

Order, the later wins: what the rank inherits · minus LEFT_OUTSIDE · what the image sets, less
NOT_THE_IMAGES · what the launch needs (PMI) · ``--env``.  Of RANK_FIRST the image's value counts only where
the rank has none.
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

NOT_THE_IMAGES: tuple[str, ...] = (
    # which rank this is, of what, and where it finds the others: an image saved inside a job says so too
    "SLURM_*",
    "PMI_*",
    "PMIX_*",
    "OMPI_COMM_*",
    "OMPI_UNIVERSE*",
    "PALS_*",
    "MPI_LOCAL*",
    "HPCPOD_*",
    # where the rank is
    "PWD",
    "OLDPWD",
)
"""What an image must not say, whether the rank has it or not."""

RANK_FIRST: tuple[str, ...] = (
    # The user is the node's, and so are the home and the scratch directory that are bound; SHELL is not here,
    # since the image knows which shells it has.
    "HOME",
    "USER",
    "LOGNAME",
    "TMPDIR",
    # PMIx's own tuning: of an image, too, unlike the wiring in the rest of PMIX_*
    "PMIX_MCA_*",
)

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def _parse_env(word: str) -> EnvSet | EnvKeep:
    """``NAME=VALUE``, or ``NAME`` alone: keep what the rank inherits."""
    name, equals, value = word.partition("=")
    if not name:
        raise UsageError(f"option --env {word}: no name before =")
    if name[0].isdigit() or not all(c.isalnum() or c == "_" for c in name):
        raise UsageError(f"option --env {word}: {name} is not a variable's name")
    return EnvSet(name, value) if equals else EnvKeep(name)


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(
        name.startswith(pattern[:-1]) if pattern.endswith("*") else name == pattern for pattern in patterns
    )


def _of_image(image: VerifiedImage, kept: set[str]) -> list[EnvOp]:
    """What the image may say.  kept: names for which the node's value was asked for."""
    operations: list[EnvOp] = []
    for name, value in {"PATH": DEFAULT_PATH, **dict(image.config.env)}.items():
        if name in kept:
            continue
        if _matches(name, RANK_FIRST):
            operations.append(EnvDefault(name, value))
        elif not _matches(name, NOT_THE_IMAGES):
            operations.append(EnvSet(name, value))
    return operations


def environment_ops(image: VerifiedImage, launch: Sequence[EnvOp], asked: Sequence[str]) -> tuple[EnvOp, ...]:
    """All operations, in order.  asked: the words of ``--env``.  Raises UsageError."""
    parsed = [_parse_env(word) for word in asked]
    kept = {item.name for item in parsed if isinstance(item, EnvKeep)}
    return (
        *(item for item in parsed if isinstance(item, EnvKeep)),
        *(EnvUnset(pattern) for pattern in LEFT_OUTSIDE),
        *_of_image(image, kept),
        EnvSet("HPCPOD_IMAGE", image.reference),
        EnvSet("HPCPOD_DIGEST", image.digest),
        EnvDefault("HOME", "/"),
        *launch,
        *(item for item in parsed if isinstance(item, EnvSet)),
    )
