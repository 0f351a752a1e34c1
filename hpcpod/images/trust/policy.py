# SPDX-License-Identifier: Apache-2.0
"""containers-policy.json(5): bytes in, frozen requirements out.  Pure.

As the manual page says, an unrecognized, duplicated or otherwise invalid field makes the whole file invalid;
nothing is accepted then.  Requirements that are valid there and cannot be checked here (certificates, a
transparency log) are kept as ones that nothing meets.
"""

from __future__ import annotations

from hpcpod.errors import HpcpodError, TrustUnusable
from hpcpod.frozen import frozen
from hpcpod.images.limits import DEFAULT_LIMITS
from hpcpod.images.strictjson import parse_object
from hpcpod.images.trust.identity import KINDS, Identity, is_prefix, parse
from hpcpod.log import shown

TYPE_CHECKING = False  # importing typing would be a sixth of a preparation's start (docs/adr/0005)
if TYPE_CHECKING:
    from typing import Any, NoReturn

PATHS = ("dir", "oci", "oci-archive", "docker-archive", "aci", "sif", "sqsh", "erofs")
"""Transports whose scopes are absolute paths."""
_NAMES = ("docker", "atomic")
_OTHERS = ("containers-storage", "docker-daemon", "ostree", "tarball")
"""Transports of other programs: a policy that they share may speak of them."""
TRANSPORTS = (*_NAMES, *PATHS, *_OTHERS)

ACCEPT, REJECT, SIGNED_BY, SIGSTORE = "insecureAcceptAnything", "reject", "signedBy", "sigstoreSigned"
KEYS_MAX = 64
"""Keys of one requirement; more is a mistake."""


@frozen
class KeySource:
    """Where keys are: in the file at this absolute path, or here.  text: base64 of data."""

    path: str = ""
    text: str = ""


@frozen
class Requirement:
    """One object of a list of requirements.

    kind: its ``type``.  keys: alternatives.  identity: what name a signature must be for.  unsupported: why
    it cannot be met by anything here; empty where it can.
    """

    kind: str
    keys: tuple[KeySource, ...] = ()
    identity: Identity = Identity()
    unsupported: str = ""


Requirements = tuple[Requirement, ...]


@frozen
class Policy:
    """A policy file.  scopes: by transport and scope; the scope of a transport's default is empty."""

    default: Requirements
    scopes: dict[tuple[str, str], Requirements]


def parse_policy(raw: bytes, what: str) -> Policy:
    """The policy in a file's bytes; `what` names it in errors.  Raises TrustUnusable."""
    try:
        document = parse_object(raw, what, DEFAULT_LIMITS)
    except HpcpodError as error:
        raise TrustUnusable(error.message, hint=_HINT) from None
    reader = _Reader(what)
    reader.only(document, "the policy", ("default",), ("transports",))
    transports = reader.fields_of(document.get("transports", {}), "transports")
    scopes = {}
    for transport, listed in transports.items():
        if transport not in TRANSPORTS:
            reader.fail(f"transport {shown(transport)}", f"one of {', '.join(TRANSPORTS)}")
        for scope, requirements in reader.fields_of(listed, f"transport {transport}").items():
            place = f"{transport} {shown(scope) or 'default'}"
            reader.check_scope(transport, scope, place)
            scopes[transport, scope] = reader.requirements(requirements, place)
    return Policy(reader.requirements(document["default"], "default"), scopes)


_HINT = "containers-policy.json(5) says what may stand there"


class _Reader:
    """Takes values out of the parsed file; complains with the place of what is wrong."""

    def __init__(self, what: str) -> None:
        self._what = what

    def fail(self, place: str, expected: str) -> NoReturn:
        raise TrustUnusable(f"{self._what}: {place}: expected {expected}", hint=_HINT)

    def fields_of(self, value: object, place: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            self.fail(place, "an object")
        return value

    def only(
        self, found: dict[str, Any], place: str, required: tuple[str, ...], other: tuple[str, ...] = ()
    ) -> None:
        """Raise unless all of the required fields and none but these are there."""
        for key in found:
            if key not in required and key not in other:
                self.fail(f"{place}: field {shown(key)}", f"none but {', '.join((*required, *other))}")
        for key in required:
            if key not in found:
                self.fail(place, f"a field {key}")

    def text(self, value: object, place: str) -> str:
        if not isinstance(value, str) or not value or "\0" in value:
            self.fail(place, "a string that is not empty")
        try:
            value.encode()
        except UnicodeEncodeError:
            self.fail(place, "a string of Unicode characters")
        return value

    def texts(self, value: object, place: str) -> tuple[str, ...]:
        if not isinstance(value, list) or not 0 < len(value) <= KEYS_MAX:
            self.fail(place, f"a list of 1 to {KEYS_MAX} strings")
        return tuple(self.text(item, place) for item in value)

    def check_scope(self, transport: str, scope: str, place: str) -> None:
        """Raise for a scope that matches nothing: whoever wrote it believes that it protects something."""
        if "\0" in scope or not scope.isprintable():
            self.fail(f"scope {place}", "printable characters")
        if scope and transport in PATHS:
            parts = scope.split("/")
            if not scope.startswith("/") or any(part in ("", ".", "..") for part in parts[1:]):
                self.fail(f"scope {place}", "an absolute path, not /, without //, . and ..")
        if transport in _NAMES and "*" in scope:
            host = scope.removeprefix("*.")
            if host == scope or not host or any(character in host for character in "*/:@"):
                self.fail(f"scope {place}", "*.DOMAIN where it has a *")

    def requirements(self, value: object, place: str) -> Requirements:
        if not isinstance(value, list) or not value:
            self.fail(place, "a list of requirements that is not empty")
        return tuple(self._requirement(item, f"{place}[{number}]") for number, item in enumerate(value))

    def _requirement(self, value: object, place: str) -> Requirement:
        found = self.fields_of(value, place)
        kind = found.get("type")
        if kind in (ACCEPT, REJECT):
            self.only(found, place, ("type",))
            return Requirement(str(kind))
        if kind == SIGNED_BY:
            self.only(found, place, ("type", "keyType"), (*_GPG_KEYS, "signedIdentity"))
            if found["keyType"] != "GPGKeys":
                self.fail(f"{place}: keyType", "GPGKeys")
            return Requirement(SIGNED_BY, self._keys(found, _GPG_KEYS, place), self._identity(found, place))
        if kind == SIGSTORE:
            return self._sigstore(found, place)
        return self.fail(f"{place}: type", f"one of {', '.join((ACCEPT, REJECT, SIGNED_BY, SIGSTORE))}")

    def _sigstore(self, found: dict[str, Any], place: str) -> Requirement:
        self.only(found, place, ("type",), (*_KEYS, *_CERTIFICATES, *_REKOR, "signedIdentity"))
        given = [name for name in (*_KEYS, *_CERTIFICATES) if name in found]
        if len(given) != 1:
            self.fail(place, f"exactly one of {', '.join((*_KEYS, *_CERTIFICATES))}")
        rekor = [name for name in _REKOR if name in found]
        if len(rekor) > 1:
            self.fail(place, f"at most one of {', '.join(_REKOR)}")
        for name in rekor:
            self._sources(found[name], name, f"{place}: {name}")
        identity = self._identity(found, place)
        if given[0] in _CERTIFICATES:
            self._certificates(given[0], found, place, bool(rekor))
            return Requirement(SIGSTORE, (), identity, f"{given[0]} is not supported here")
        keys = self._keys(found, _KEYS, place)
        return Requirement(SIGSTORE, keys, identity, f"{rekor[0]} is not supported here" if rekor else "")

    def _certificates(self, kind: str, found: dict[str, Any], place: str, rekor: bool) -> None:
        """Raise unless the fields are those that the manual page wants."""
        known = _CERTIFICATES[kind]
        fields = self.fields_of(found[kind], f"{place}: {kind}")
        self.only(fields, f"{place}: {kind}", (), tuple(name for names, _, _ in known for name in names))
        for names, least, most in known:
            given = [name for name in names if name in fields]
            if not least <= len(given) <= most:
                self.fail(f"{place}: {kind}", f"{'one' if least else 'at most one'} of {', '.join(names)}")
            for name in given:
                self.text(fields[name], f"{place}: {kind}: {name}")
        if kind == "fulcio" and not rekor:
            self.fail(place, "a rekorPublicKey beside fulcio")

    def _keys(self, found: dict[str, Any], names: tuple[str, ...], place: str) -> tuple[KeySource, ...]:
        given = [name for name in names if name in found]
        if len(given) != 1:
            self.fail(place, f"exactly one of {', '.join(names)}")
        return self._sources(found[given[0]], given[0], f"{place}: {given[0]}")

    def _sources(self, value: object, name: str, place: str) -> tuple[KeySource, ...]:
        listed = self.texts(value, place) if name.endswith("s") else (self.text(value, place),)
        if "Data" in name:
            return tuple(KeySource(text=text) for text in listed)
        for path in listed:
            if not path.startswith("/"):  # it would be another file in each directory
                self.fail(place, "an absolute path")
        return tuple(KeySource(path=path) for path in listed)

    def _identity(self, found: dict[str, Any], place: str) -> Identity:
        if "signedIdentity" not in found:
            return Identity()
        place = f"{place}: signedIdentity"
        fields = self.fields_of(found["signedIdentity"], place)
        kind = fields.get("type")
        if kind not in KINDS:
            self.fail(f"{place}: type", f"one of {', '.join(KINDS)}")
        names = _IDENTITY.get(kind, ())
        self.only(fields, place, ("type", *names))
        values = [self.text(fields[name], f"{place}: {name}") for name in names]
        for name, value in zip(names, values, strict=True):
            if kind == "remapIdentity" and not is_prefix(value):
                self.fail(f"{place}: {name}", "a host, or the beginning of a name with its host")
            named = parse(value) if kind != "remapIdentity" else None
            if kind != "remapIdentity" and named is None:
                self.fail(f"{place}: {name}", "a name of an image")
            if kind == "exactReference" and named is not None and not named.tag and not named.digest:
                self.fail(f"{place}: {name}", "a name with a tag or a digest")
        return Identity(kind, *values)


_GPG_KEYS = ("keyPath", "keyPaths", "keyData")
_KEYS = (*_GPG_KEYS, "keyDatas")
_REKOR = tuple(f"rekorPublicKey{end}" for end in ("Path", "Paths", "Data", "Datas"))
_CERTIFICATES = {
    "fulcio": ((("caPath", "caData"), 1, 1), (("oidcIssuer",), 1, 1), (("subjectEmail",), 1, 1)),
    "pki": (
        (("caRootsPath", "caRootsData"), 1, 1),
        (("caIntermediatesPath", "caIntermediatesData"), 0, 1),
        (("subjectHostname", "subjectEmail"), 1, 2),
    ),
}
"""Fields of requirements by certificates: alternatives, and how many of them must and may be there."""
_IDENTITY = {
    "exactReference": ("dockerReference",),
    "exactRepository": ("dockerRepository",),
    "remapIdentity": ("prefix", "signedPrefix"),
}
