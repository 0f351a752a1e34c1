# SPDX-License-Identifier: Apache-2.0
"""Changing a trust directory: rules, the keys that they name, and keys that are revoked.

Each file is made under another name, synced and renamed, so that whoever reads sees it whole or not at all;
a key is there before the rule that names it.  Commands that change a directory wait for one another.
"""

from __future__ import annotations

import contextlib
import os

from hpcpod.errors import TrustUnusable, UsageError
from hpcpod.frozen import frozen, replace
from hpcpod.images.trust import rules
from hpcpod.images.trust.files import Files
from hpcpod.images.trust.gates import read_key, read_revoked, read_rules
from hpcpod.images.trust.keys import OPENPGP, Key, parse_openpgp, parse_pem
from hpcpod.images.trust.rules import Rule
from hpcpod.log import shown

TYPE_CHECKING = False  # importing typing would be a sixth of a preparation's start (docs/adr/0005)
if TYPE_CHECKING:
    from collections.abc import Iterator


@frozen
class Candidate:
    """A key that somebody is about to trust.  name: its user id, or its kind."""

    key: Key
    name: str


def load(raw: bytes, origin: str, now: int) -> tuple[Candidate, ...]:
    """The keys in a file, each alone, cleaned by gpg; ones that could never count are refused.

    now: seconds since 1970.  Raises TrustUnusable.
    """
    if b"-----BEGIN PUBLIC KEY-----" in raw or b"-----BEGIN RSA PUBLIC KEY-----" in raw:
        from hpcpod.images.trust.sigstore import verified

        key = parse_pem(raw, origin, for_rule=True)
        verified(key, b"", b"", "")  # the point must lie on the curve
        return (Candidate(key, key.algorithm),)
    from hpcpod.images.trust.gpg import Home

    found = []
    with Home(parse_openpgp(raw, origin), now) as home:
        for listed in home.listed():
            if listed.state:
                raise TrustUnusable(f"key {origin}: {listed.fingerprint} is {listed.state}")
            (key,) = parse_openpgp(home.export(listed.fingerprint), origin)
            found.append(Candidate(key, listed.name))
    return tuple(found)


def add(directory: str, rule: Rule, keys: tuple[Key, ...]) -> Rule:
    """Add keys to the rule for a prefix, which is made if there is none; the rule as it is then.

    rule.threshold: 0 for what it was (or 1).  Raises TrustUnusable, UsageError.
    """
    rules.check_prefix(rule.transport, rule.prefix)
    if rule.transport != "docker" and any(key.kind != OPENPGP for key in keys):
        raise UsageError(f"transport {rule.transport}: its images are signed by OpenPGP keys alone")
    with _changing(directory):
        old = _found(directory, rule.transport, rule.prefix)
        names = dict.fromkeys((*(old.keys if old else ()), *(key.fingerprint for key in keys)))
        threshold = rule.threshold or (old.threshold if old else 1)
        if threshold > len(names):
            raise UsageError(f"threshold {threshold}: the rule has {len(names)} keys")
        if len(names) > rules.KEYS_MAX:
            raise UsageError(f"keys: {len(names)}, at most {rules.KEYS_MAX} in one rule")
        named = rule.named or (old.named if old else False)
        made = replace(rule, keys=tuple(names), threshold=threshold, named=named)
        for key in keys:
            _write(f"{directory}/keys/{rules.key_file(key.fingerprint)}", _key_bytes(key))
        _write(f"{directory}/rules/{rules.file_name(rule.transport, rule.prefix)}", rules.rule_bytes(made))
        return made


def _key_bytes(key: Key) -> bytes:
    if key.kind == OPENPGP:
        return key.data
    import base64

    return b"-----BEGIN PUBLIC KEY-----\n%s-----END PUBLIC KEY-----\n" % base64.encodebytes(key.data)


def remove(directory: str, transport: str, prefix: str) -> Rule:
    """Remove the rule for a prefix, and keys that no other rule names.  Raises UsageError, TrustUnusable."""
    if not os.path.isdir(directory):
        raise UsageError(f"{shown(directory)}: has no rule for {transport} {shown(prefix)}")
    with _changing(directory):
        old = _found(directory, transport, prefix)
        if old is None:
            raise UsageError(
                f"{shown(directory)}: has no rule for {transport} {shown(prefix)}",
                hint="hpcpod trust list shows those that there are",
            )
        os.unlink(f"{directory}/rules/{rules.file_name(transport, prefix)}")
        used = {key for _, rule in _all(directory) for key in rule.keys}
        for key in old.keys:
            if key not in used:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(f"{directory}/keys/{rules.key_file(key)}")
        _sync(f"{directory}/rules")
        return old


def revoke(directory: str, fingerprint: str) -> bool:
    """Let no rule accept this key any more; whether that is new."""
    with _changing(directory):
        path = f"{directory}/revoked/{rules.revoked_file(fingerprint)}"
        if os.path.lexists(path):
            return False
        _write(path, b"")
        return True


@frozen
class Content:
    """What is in a trust directory: rules with their keys, and what is revoked."""

    rules: tuple[tuple[Rule, tuple[Key, ...]], ...]
    revoked: tuple[str, ...]


def content(directory: str, owners: frozenset[int], *, strict: bool) -> Content:
    """What is in a trust directory; nothing where there is none.  Raises TrustUnusable."""
    files = Files(strict=strict)
    found = tuple(
        (rule, tuple(read_key(files, directory, key, owners) for key in rule.keys))
        for _, rule in read_rules(files, directory, owners)
    )
    return Content(found, tuple(sorted(read_revoked(files, directory, owners))))


def _owners() -> frozenset[int]:
    return frozenset((0, os.geteuid()))


def _all(directory: str) -> tuple[tuple[str, Rule], ...]:
    return read_rules(Files(strict=False), directory, _owners())


def _found(directory: str, transport: str, prefix: str) -> Rule | None:
    same = (rule for _, rule in _all(directory) if (rule.transport, rule.prefix) == (transport, prefix))
    return next(same, None)


@contextlib.contextmanager
def _changing(directory: str) -> Iterator[None]:
    """Make the directory, and let nobody else change it meanwhile."""
    import fcntl

    try:
        for name in ("rules", "keys", "revoked"):
            _make(f"{directory}/{name}")
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise TrustUnusable(
            f"{shown(directory)}: {os.strerror(error.errno or 0).lower()}", hint="the site's is root's"
        ) from None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    except OSError as error:
        raise TrustUnusable(f"{shown(directory)}: {os.strerror(error.errno or 0).lower()}") from None
    finally:
        os.close(fd)


def _make(path: str) -> None:
    """Make a directory and those above it, whatever the umask: all read the site's, users their own."""
    if os.path.isdir(path):
        return
    parent = os.path.dirname(path)
    if not os.path.isdir(parent):
        _make(parent)
    with contextlib.suppress(FileExistsError):
        mode = 0o755 if os.geteuid() == 0 else 0o700
        os.mkdir(path, mode)
        os.chmod(path, mode)


def _write(path: str, data: bytes) -> None:
    directory, name = os.path.split(path)
    temporary = f"{directory}/.{name}.{os.getpid()}"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary)
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    with open(fd, "wb") as file:
        file.write(data)
        file.flush()
        os.fchmod(fd, 0o644)
        os.fsync(fd)
    os.rename(temporary, path)
    _sync(directory)


def _sync(directory: str) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
