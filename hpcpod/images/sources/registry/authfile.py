# SPDX-License-Identifier: Apache-2.0
"""containers-auth.json(5) and Docker's config.json: which credentials are for a name.  Pure.

A value of :class:`Credentials` shows none of what it holds: not in a traceback, not in a message.
"""

from __future__ import annotations

from hpcpod.errors import ImageInvalid, UsageError
from hpcpod.frozen import frozen
from hpcpod.images.dockername import HUB
from hpcpod.images.limits import DEFAULT_LIMITS
from hpcpod.images.strictjson import Fields, parse_object
from hpcpod.log import shown

HUB_KEYS = (HUB, f"index.{HUB}", f"registry-1.{HUB}")
HUB_URL = f"https://index.{HUB}/v1/"
"""What Docker calls Docker Hub where it keeps credentials."""
TOKEN_USER = "<token>"  # noqa: S105 - the name that says that the secret is an identity token
_HELPER = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")


class Credentials:
    """A user and a password, or an identity token, or a token of the registry itself; never shown."""

    __slots__ = ("identity", "password", "registry", "user")

    def __init__(self, user: str = "", password: str = "", identity: str = "", registry: str = "") -> None:
        self.user = user
        self.password = password
        self.identity = identity
        self.registry = registry

    def __repr__(self) -> str:
        """Nothing of it."""
        return "Credentials(…)"

    def __eq__(self, other: object) -> bool:
        """Whether all is the same."""
        return isinstance(other, Credentials) and self._all() == other._all()

    def __hash__(self) -> int:
        """By all of it."""
        return hash(self._all())

    def _all(self) -> tuple[str, str, str, str]:
        return self.user, self.password, self.identity, self.registry


@frozen
class AuthFile:
    """A file's content.  auths: by key as written, normalised.  helpers: program by key.  store: program."""

    auths: tuple[tuple[str, Credentials], ...] = ()
    helpers: tuple[tuple[str, str], ...] = ()
    store: str = ""


@frozen
class Lookup:
    """What a file has for a name: credentials, or the program to ask and what for."""

    credentials: Credentials | None = None
    helper: str = ""
    server: str = ""


def parse_auth(raw: bytes, path: str, *, legacy: bool = False) -> AuthFile:
    """The content of a file.  legacy: of .dockercfg, the table of auths alone.  Raises UsageError."""
    what = shown(path)
    try:
        fields = Fields(parse_object(raw, what, DEFAULT_LIMITS), what)
        if legacy:
            return AuthFile(auths=_auths(Fields({"auths": parse_object(raw, what, DEFAULT_LIMITS)}, what)))
        return AuthFile(_auths(fields), _helpers(fields), _program(fields, fields.text("credsStore", "")))
    except ImageInvalid as error:  # the reader of JSON is the images'
        raise UsageError(error.message) from None


def _auths(fields: Fields) -> tuple[tuple[str, Credentials], ...]:
    found = []
    for key in fields.keys("auths"):
        entry = fields.child("auths").child(key)
        credentials = _entry(entry)
        if credentials is not None:
            found.append((normalised(key), credentials))
    return tuple(found)


def _entry(entry: Fields) -> Credentials | None:
    """None for an entry that only says that a helper has the credentials."""
    user, password = entry.text("username", ""), entry.text("password", "")
    encoded = entry.text("auth", "")
    if encoded:
        user, password = _decoded(entry, encoded)
    identity, registry = entry.text("identitytoken", ""), entry.text("registrytoken", "")
    if not (user or identity or registry):
        return None
    return Credentials(user, password, identity, registry)


def _decoded(entry: Fields, encoded: str) -> tuple[str, str]:
    import base64
    import binascii

    try:
        text = base64.b64decode(encoded, validate=True).decode()
    except (binascii.Error, ValueError):
        entry.fail("auth", "USER:PASSWORD in base64")  # what is there is not shown
    user, colon, password = text.partition(":")
    if not colon or not user or not _is_plain(text.rstrip("\0")):
        entry.fail("auth", "USER:PASSWORD in base64")
    return user, password.rstrip("\0")  # Docker once padded passwords


def _is_plain(text: str) -> bool:
    """Whether it can stand in a header: no control characters."""
    return not any(ord(character) < 32 or ord(character) == 127 for character in text)


def _helpers(fields: Fields) -> tuple[tuple[str, str], ...]:
    return tuple((normalised(key), _program(fields, name)) for key, name in fields.mapping("credHelpers"))


def _program(fields: Fields, name: str) -> str:
    if not _HELPER.issuperset(name):
        fields.fail("credHelpers", f"names of programs, got {shown(name)}")
    return name


def is_helper(name: str) -> bool:
    """Whether this can be a helper's name: it becomes part of a program's."""
    return bool(name) and _HELPER.issuperset(name)


def normalised(key: str) -> str:
    """A key without what old versions of Docker wrote around the host; Docker Hub by one name."""
    text = key
    for scheme in ("https://", "http://"):
        if key.startswith(scheme):  # then only the host counts
            text = key.removeprefix(scheme).partition("/")[0]
    text = text.rstrip("/")
    host, slash, path = text.partition("/")
    return f"{HUB if host in HUB_KEYS else host}{slash}{path}"


def keys_for(host: str, path: str) -> tuple[str, ...]:
    """What credentials for an image may be filed under: its repository, namespaces, its host."""
    parts = path.split("/")
    name = HUB if host in HUB_KEYS else host
    return (*(f"{name}/{'/'.join(parts[:count])}" for count in range(len(parts), 0, -1)), name)


def look_up(file: AuthFile, host: str, path: str) -> Lookup | None:
    """What a file has for a repository; None for nothing.

    A helper for the registry comes before what the file itself has (containers-auth.json(5)), a store of all
    credentials after it.
    """
    keys = keys_for(host, path)
    helpers, auths = dict(file.helpers), dict(file.auths)
    for key in keys:
        if helpers.get(key):
            return Lookup(helper=helpers[key], server=server_of(key))
    for key in keys:
        if key in auths:
            return Lookup(credentials=auths[key])
    return Lookup(helper=file.store, server=server_of(keys[-1])) if file.store else None


def server_of(key: str) -> str:
    """What a helper is asked for."""
    return HUB_URL if key == HUB else key


def parse_helper(raw: bytes, name: str) -> Credentials:
    """What docker-credential-NAME answered.  Raises UsageError, which shows nothing of it."""
    what = f"docker-credential-{name}"
    try:
        fields = Fields(parse_object(raw, what, DEFAULT_LIMITS), what)
        user, secret = fields.text("Username", ""), fields.text("Secret")
    except ImageInvalid:
        raise UsageError(f"{what}: its answer is not what the protocol asks for (Username, Secret)") from None
    if not _is_plain(user + secret):
        raise UsageError(f"{what}: its answer has control characters")
    return Credentials(identity=secret) if user == TOKEN_USER else Credentials(user, secret)
