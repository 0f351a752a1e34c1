# SPDX-License-Identifier: Apache-2.0
"""The command line of ``hpcpod run`` as a frozen value.  Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hpcpod.errors import UsageError
from hpcpod.frozen import frozen
from hpcpod.images.sources.checks import parse_checks
from hpcpod.launcher import mpi
from hpcpod.launcher.options import RUN_OPTIONS, Option
from hpcpod.sizes import LAYER_LEAST, is_number, parse_bytes

REQUEST_VARIABLES: tuple[str, ...] = (
    "HOME",
    "USER",
    "XDG_CONFIG_HOME",
    "HPCPOD_CONFIG",
    "HPCPOD_STORE",
    "HPCPOD_RUNTIME",
    "HPCPOD_BIND",
    "HPCPOD_MPI",
    "PMIX_SECURITY_MODE",
)
"""Variables that a plan depends on; native/request.c hashes the same names into the plan's name."""

ROOTFS = ("auto", "dir", "squashfs", "erofs")
"""Forms of an image that may be asked for."""

PULLS = ("always", "missing", "never")
"""When a registry may be asked."""

WRITABLE_DEFAULT = 256 << 20


@frozen
class RunRequest:
    """What the user asked for.

    binds, env: the words as given, in order.  writable, shm_size: bytes; writable None for a read-only root,
    shm_size 0 for the kernel's default.  mpi: auto, pmi2, pmix or none.
    rootfs: auto, dir, squashfs or erofs.  pull: always, missing or never.  insecure: names of checks that are
    switched off.
    """

    binds: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    workdir: str | None = None
    ntasks: int | None = None
    mpi: str = "auto"
    writable: int | None = None
    home: bool = True
    shm_size: int = 0
    seccomp: bool = True
    platform: str | None = None
    rootfs: str = "auto"
    pull: str = "missing"
    insecure: frozenset[str] = frozenset()
    preserve_fds: int = 0
    debug: bool = False


def _unknown(word: str, options: Sequence[Option]) -> UsageError:
    """The error for a word that is none of the options, with the one that was perhaps meant."""
    import difflib  # not on the way of a preparation that goes well

    hint = "hpcpod run --help lists the options"
    if word.startswith("--"):
        name = word[2:].partition("=")[0]
        near = difflib.get_close_matches(name, [option.name for option in options], n=1)
        hint = f"did you mean --{near[0]}?" if near else hint
    return UsageError(f"option {word}: unknown", hint=hint)


def _find_option(word: str, options: Sequence[Option]) -> tuple[Option, str | None]:
    """The option that this word is, and the value attached to it."""
    if word.startswith("--"):
        name, equals, value = word[2:].partition("=")
        found = [option for option in options if option.name == name]
        attached = value if equals else None
    else:
        found = [option for option in options if option.short == word[1:2]]
        attached = word[2:] or None
    if not found:
        raise _unknown(word, options)
    option = found[0]
    if attached is not None and not option.metavar:
        raise UsageError(f"option --{option.name}: takes no value, got {attached}")
    return option, attached


def split_words(
    words: Sequence[str], options: Sequence[Option] = RUN_OPTIONS
) -> tuple[dict[str, list[str]], list[str]]:
    """Option values by option name, and the words from the first that is no option.  Raises UsageError."""
    values: dict[str, list[str]] = {}
    rest = list(words)
    while rest and rest[0].startswith("-") and rest[0] not in ("-", "--"):
        option, value = _find_option(rest.pop(0), options)
        if option.metavar and value is None:
            if not rest:
                raise UsageError(f"option --{option.name}: lacks its value {option.metavar}")
            value = rest.pop(0)
        if option.metavar and not value:
            raise UsageError(f"option --{option.name}: its value {option.metavar} is empty")
        values.setdefault(option.name, []).append(value or "")
    return values, rest


def _positive(text: str, what: str) -> int:
    if not is_number(text) or int(text) < 1:
        raise UsageError(f"{what} {text}: not a positive number")
    return int(text)


def _choice(text: str, name: str, choices: tuple[str, ...]) -> str:
    if text not in choices:
        raise UsageError(f"option --{name} {text}: unknown", hint=f"one of: {', '.join(choices)}")
    return text


def parse_request(
    words: Sequence[str], environment: Mapping[str, str], options: Sequence[Option] = RUN_OPTIONS
) -> tuple[RunRequest, list[str]]:
    """The request in these words (what follows ``run``), and the words from the reference on.

    ``$HPCPOD_BIND`` (comma-separated binds) and ``$HPCPOD_MPI`` count as if they were given first.
    Raises UsageError.
    """
    values, rest = split_words(words, options)

    def last(name: str) -> str | None:
        return values[name][-1] if name in values else None

    size = last("writable-size")
    # A memory file system of size 0 has no limit: tmpfs(5).
    writable = parse_bytes(size, "option --writable-size", LAYER_LEAST) if size else None
    if writable is None and "writable" in values:
        writable = WRITABLE_DEFAULT
    ntasks, shm = last("ntasks"), last("shm-size")
    preserve = last("preserve-fds")
    request = RunRequest(
        binds=(*_environment_binds(environment), *values.get("bind", [])),
        env=tuple(values.get("env", [])),
        workdir=_workdir(last("workdir")),
        ntasks=_positive(ntasks, "option --ntasks") if ntasks else None,
        mpi=_choice(last("mpi") or environment.get("HPCPOD_MPI") or "auto", "mpi", mpi.MODES),
        writable=writable,
        home="no-home" not in values,
        shm_size=parse_bytes(shm, "option --shm-size", LAYER_LEAST) if shm else 0,
        seccomp=_choice(last("seccomp") or "default", "seccomp", ("default", "none")) == "default",
        platform=last("platform"),
        rootfs=_choice(last("rootfs") or "auto", "rootfs", ROOTFS),
        pull=_choice(last("pull") or "missing", "pull", PULLS),
        insecure=parse_checks(values.get("insecure-options", []), "option --insecure-options"),
        preserve_fds=_positive(preserve, "option --preserve-fds") if preserve else 0,
        debug="debug" in values,
    )
    return request, rest


def _workdir(path: str | None) -> str | None:
    if path is not None and not path.startswith("/"):
        raise UsageError(f"option --workdir {path}: not an absolute path of the pod")
    return path


def _environment_binds(environment: Mapping[str, str]) -> list[str]:
    """The binds of ``$HPCPOD_BIND``: SRC[:DST[:OPTS]], …; a comma that continues OPTS belongs to it."""
    binds: list[str] = []
    for part in environment.get("HPCPOD_BIND", "").split(","):
        if part in ("ro", "rw", "optional") and binds:
            binds[-1] += f",{part}"
        elif part:
            binds.append(part)
    return binds
