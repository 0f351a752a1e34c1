# SPDX-License-Identifier: Apache-2.0
"""What a site decides: hpcpod.toml, read once (docs/man/hpcpod.toml.5.md).

The file is /etc/hpcpod/hpcpod.toml, or the one that $HPCPOD_CONFIG names.  It must belong to root or to
whoever runs this, and nobody else may be able to write it.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Mapping

from hpcpod.errors import SystemRefused, UsageError
from hpcpod.frozen import frozen
from hpcpod.model import FileStamp
from hpcpod.sizes import QUOTA_LEAST, is_number, parse_bytes, parse_size

PATH = "/etc/hpcpod/hpcpod.toml"
_OVERFLOW = 65534
"""/proc/sys/kernel/overflowuid, unless somebody has changed it."""
_LONGEST = 1 << 20
_PERCENT = 100
_OF_NODE = (errno.EIO, errno.EINTR, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE, errno.ETIMEDOUT)
"""Why a file cannot be opened through no fault of its own."""


@frozen
class Quota:
    """A bound on what a store holds.  bytes: or None for none; percent: of the file system, or None."""

    bytes: int | None = None
    percent: int | None = None


@frozen
class Settings:
    """The values in force.

    site: directory of the site's store.  site_run: its run-time directory, on memory.  account: name or
    number of the user who unpacks into it.  rootfs: the form of images where nothing else is asked for.
    site_quota, user_quota: bounds of a store.  high: percentage of the quota above which images are
    collected, low: down to which.  limits: changed fields of images.limits.Limits.  trust_policy,
    trust_directory: the site's policy.json and trust directory; empty for where they usually are.
    user_unsigned: ``accept`` or ``reject``, for users' stores where no policy decides.  stamp: of the file,
    or that there is none.
    """

    site: str = "/var/lib/hpcpod"
    site_run: str = "/run/hpcpod/site"
    account: str = "hpcpod"
    rootfs: str = "auto"
    site_quota: Quota = Quota()
    user_quota: Quota = Quota()
    high: int = 95
    low: int = 80
    limits: tuple[tuple[str, int], ...] = ()
    trust_policy: str = ""
    trust_directory: str = ""
    user_unsigned: str = "accept"
    stamp: FileStamp | None = None


_KEYS = {
    "store": ("rootfs", "high", "low"),
    "site": ("store", "run", "account", "quota"),
    "user": ("quota",),
    "trust": ("policy", "directory", "user_unsigned"),
    "limits": None,
}


def read_settings(environment: Mapping[str, str]) -> Settings:
    """The site's settings; the defaults where there is no file.  Raises UsageError, SystemRefused."""
    path = environment.get("HPCPOD_CONFIG") or PATH
    if not path.startswith("/"):  # plans remember it, and are used from any directory
        raise UsageError(f"configuration {path}: not an absolute path")
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        if environment.get("HPCPOD_CONFIG"):
            raise UsageError(f"configuration {path}: not there (ENOENT)") from None
        return Settings(stamp=FileStamp(path, 0, 0, 0, 0, 0))
    except OSError as error:
        kind = SystemRefused if error.errno in _OF_NODE else UsageError
        raise kind(f"configuration {path}: {os.strerror(error.errno or 0).lower()}") from None
    try:
        status = os.fstat(fd)
        _check_owner(path, status)
        raw = os.read(fd, _LONGEST + 1)
    finally:
        os.close(fd)
    if len(raw) > _LONGEST:
        raise UsageError(f"configuration {path}: longer than {_LONGEST} bytes")
    stamp = FileStamp(
        path, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
    )
    return parse_settings(raw, path, stamp)


def is_roots(uid: int) -> bool:
    """Whether a file of this owner is root's, as far as can be told.

    In a user namespace that does not map root (user_namespaces(7)) its files look like those of others that
    are not mapped; what lies in directories that only they can write is root's all the same.
    """
    if uid != _OVERFLOW:
        return uid == 0
    try:
        with open("/proc/self/uid_map", encoding="ascii") as file:
            return all(line.split()[1] != "0" for line in file)
    except OSError:
        return False


def _check_owner(path: str, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise UsageError(f"configuration {path}: not a regular file")
    if not (is_roots(status.st_uid) or status.st_uid == os.geteuid()) or status.st_mode & 0o022:
        raise UsageError(
            f"configuration {path}: owner {status.st_uid}, mode {status.st_mode & 0o7777:04o}: "
            "others could change it",
            hint="chown root, chmod 0644",
        )


def parse_settings(raw: bytes, path: str, stamp: FileStamp | None = None) -> Settings:
    """The settings in a file's bytes.  Raises UsageError."""
    import tomllib  # costs milliseconds, for which ranks wait: only where a site has such a file

    try:
        document = tomllib.loads(raw.decode())
    except (ValueError, RecursionError) as error:  # also a number of thousands of digits
        raise UsageError(f"configuration {path}: not TOML: {error}") from None
    reader = _Reader(path, document)
    default = Settings()
    settings = Settings(
        site=reader.path("site", "store", default.site),
        site_run=reader.path("site", "run", default.site_run) or default.site_run,
        account=str(reader.value("site", "account", default.account, (str, int))),
        rootfs=reader.choice("store", "rootfs", ("auto", "dir", "squashfs", "erofs")),
        site_quota=reader.quota("site"),
        user_quota=reader.quota("user"),
        high=reader.percent("high", default.high),
        low=reader.percent("low", default.low),
        limits=reader.limits(),
        trust_policy=reader.path("trust", "policy", ""),
        trust_directory=reader.path("trust", "directory", ""),
        user_unsigned=reader.choice("trust", "user_unsigned", ("accept", "reject")),
        stamp=stamp,
    )
    if settings.low > settings.high:
        raise reader.wrong("store", "low", "a number not above high")
    return settings


class _Reader:
    """Takes typed values out of a parsed file; complains with the place of what is wrong."""

    def __init__(self, path: str, document: dict[str, object]) -> None:
        self._path = path
        self._tables: dict[str, dict[str, object]] = {}
        for name, table in document.items():
            if name not in _KEYS or not isinstance(table, dict):
                raise UsageError(
                    f"configuration {path}: {name}: unknown", hint=f"tables are: {', '.join(_KEYS)}"
                )
            known = _KEYS[name]
            for key in table:
                if known is not None and key not in known:
                    raise UsageError(
                        f"configuration {path}: [{name}] {key}: unknown", hint=f"keys are: {', '.join(known)}"
                    )
            self._tables[name] = table

    def wrong(self, table: str, key: str, expected: str) -> UsageError:
        got = self._tables.get(table, {}).get(key)
        return UsageError(f"configuration {self._path}: [{table}] {key}: expected {expected}, got {got!r}")

    def value(self, table: str, key: str, default: object, kinds: tuple[type, ...]) -> object:
        found = self._tables.get(table, {}).get(key, default)
        if isinstance(found, bool) or not isinstance(found, kinds):
            raise self.wrong(table, key, " or ".join(kind.__name__ for kind in kinds))
        return found

    def path(self, table: str, key: str, default: str) -> str:
        found = str(self.value(table, key, default, (str,)))
        if found and not found.startswith("/"):
            raise self.wrong(table, key, "an absolute path, or an empty text for none")
        return found.rstrip("/")

    def choice(self, table: str, key: str, choices: tuple[str, ...]) -> str:
        found = str(self.value(table, key, choices[0], (str,)))
        if found not in choices:
            raise self.wrong(table, key, f"one of {', '.join(choices)}")
        return found

    def percent(self, key: str, default: int) -> int:
        found = self.value("store", key, default, (int,))
        assert isinstance(found, int)
        if not 0 < found <= _PERCENT:
            raise self.wrong("store", key, "a percentage, 1 to 100")
        return found

    def quota(self, table: str) -> Quota:
        found = self.value(table, "quota", "", (str, int))
        if found == "":
            return Quota()
        text = str(found)
        if text.endswith("%"):
            number = text[:-1]
            if not is_number(number) or not 0 < int(number) <= _PERCENT:
                raise self.wrong(table, "quota", "a size such as 200G, or a percentage such as 40%")
            return Quota(percent=int(number))
        return Quota(bytes=parse_bytes(text, f"configuration {self._path}: [{table}] quota", QUOTA_LEAST))

    def limits(self) -> tuple[tuple[str, int], ...]:
        found = []
        for key in self._tables.get("limits", {}):
            text = str(self.value("limits", key, 0, (str, int)))
            found.append((key, parse_size(text, f"configuration {self._path}: [limits] {key}")))
        return tuple(found)
