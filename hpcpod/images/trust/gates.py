# SPDX-License-Identifier: Apache-2.0
"""The gates that an image must pass: the site's and the user's, each a policy.json and a trust directory.

Everything that they depend on is read here, once; what follows from it is judge.py's.
"""

from __future__ import annotations

from hpcpod.errors import TrustUnusable
from hpcpod.frozen import frozen, replace
from hpcpod.images.trust import rules
from hpcpod.images.trust.files import Files
from hpcpod.images.trust.identity import Identity
from hpcpod.images.trust.keys import OPENPGP, PEM, Key, parse_keys, parse_openpgp, parse_pem
from hpcpod.images.trust.policy import ACCEPT, SIGNED_BY, KeySource, Policy, Requirement, parse_policy
from hpcpod.images.trust.rules import Rule
from hpcpod.log import shown

TYPE_CHECKING = False  # importing typing would be a sixth of a preparation's start (docs/adr/0005)
if TYPE_CHECKING:
    from collections.abc import Mapping

    from hpcpod.model import FileStamp
    from hpcpod.settings import Settings

SITE_DIRECTORY = "/etc/hpcpod/trust"
_SITE_POLICY = "/etc/hpcpod/policy.json"
_SHARED_POLICY = "/etc/containers/policy.json"
"""Podman's, Buildah's and Skopeo's, too; distributions ship it with a default that nobody decided."""


@frozen
class Demand:
    """What an image must have.

    kind: the ``type`` of a requirement, or ``prefix`` for a rule of a trust directory.  keys: that may sign;
    threshold: how many of them must.  identity: what name a signature must be for; nameless: one that is for
    no name counts too.  unsupported: why nothing meets it, empty where something can.
    """

    kind: str
    keys: tuple[Key, ...] = ()
    threshold: int = 1
    identity: Identity = Identity()
    nameless: bool = False
    unsupported: str = ""


@frozen
class Place:
    """Demands, and where they are written.  scope: printable; ``default`` for what all others fall to."""

    file: str
    scope: str
    demands: tuple[Demand, ...]


@frozen
class Gate:
    """A policy and a trust directory.

    name: ``site`` or ``user``.  policy: path of its file, empty for none.  scopes: by transport and scope
    (empty for a transport's default); where policy and directory have the same, both are there, the policy's
    first.  default: None where there is no policy.  undecided: the default is a distribution's, no decision.
    """

    name: str
    policy: str = ""
    directory: str = ""
    scopes: Mapping[tuple[str, str], tuple[Place, ...]] = {}
    default: Place | None = None
    undecided: bool = False


@frozen
class Gates:
    """All that judging depends on but the image.

    revoked: fingerprints that no rule accepts, by gate.  stamps: of all files and directories that were read;
    all zero (but for the path) for what was looked for and not there, and must stay absent.  fingerprint: a
    hash of the same content, empty where nothing is decided.  user_unsigned: ``accept`` or ``reject``, for
    users' stores where no gate decides.
    """

    site: Gate
    user: Gate
    revoked: frozenset[str]
    stamps: tuple[FileStamp, ...]
    fingerprint: str
    user_unsigned: str

    @property
    def is_open(self) -> bool:
        """Whether nobody has decided anything about users' stores."""
        decided = self.site.scopes or self.user.scopes or self.user.default or self.user_unsigned != "accept"
        return not decided and (self.site.default is None or self.site.undecided)

    def without_user(self) -> Gates:
        """The site's gate alone: a user need not pass their own."""
        return replace(self, user=Gate("user"), fingerprint=f"{self.fingerprint} site alone")


def user_directory(environment: Mapping[str, str]) -> str:
    """The user's trust directory; empty where there is no home."""
    base = environment.get("XDG_CONFIG_HOME", "")
    if not base.startswith("/"):  # as the XDG base directory specification wants it
        home = environment.get("HOME", "")
        base = f"{home}/.config" if home.startswith("/") else ""
    return f"{base}/hpcpod/trust" if base else ""


def gates(settings: Settings, environment: Mapping[str, str], uid: int) -> Gates:
    """Read policies, rules and keys for a user.  Raises TrustUnusable.

    uid: who starts images.  The site's files must be root's; those that hpcpod.toml names may be the user's
    own, since one who has a configuration of their own is bound by that one.
    """
    files = Files()
    files.note(settings.user_unsigned, str(uid))
    root, either = frozenset((0,)), frozenset((0, uid))
    site, revoked = _gate(
        files,
        Gate("site", directory=settings.trust_directory or SITE_DIRECTORY),
        _site_policy(files, settings, root, either),
        either if settings.trust_directory else root,
    )
    files.strict = False  # what lies in a user's home is between them and their neighbours
    home = environment.get("HOME", "")
    path = f"{home}/.config/containers/policy.json" if home.startswith("/") else ""
    user, also = _gate(
        files,
        Gate("user", directory=user_directory(environment)),
        (path, files.read(path, either) if path else None, either),
        either,
    )
    shared = site.policy == _SHARED_POLICY and not settings.trust_policy
    undecided = shared and site.default is not None and _accepts(site.default)
    found = Gates(
        replace(site, undecided=undecided), user, revoked | also, files.stamps, "", settings.user_unsigned
    )
    return found if found.is_open else replace(found, fingerprint=files.fingerprint)


def _accepts(place: Place) -> bool:
    return all(demand.kind == ACCEPT for demand in place.demands)


_Read = tuple[str, bytes | None, frozenset[int]]
"""Path, content and permitted owners of a policy file."""


def _site_policy(files: Files, settings: Settings, root: frozenset[int], either: frozenset[int]) -> _Read:
    """The first that there is.  Raises TrustUnusable where hpcpod.toml names one that is not there."""
    if settings.trust_policy:
        raw = files.read(settings.trust_policy, either)
        if raw is None:
            raise TrustUnusable(
                f"{shown(settings.trust_policy)}: not there (ENOENT), but hpcpod.toml names it as the policy"
            )
        return settings.trust_policy, raw, either
    for path in (_SITE_POLICY, _SHARED_POLICY):
        raw = files.read(path, root)
        if raw is not None:
            return path, raw, root
    return "", None, root


def _gate(files: Files, gate: Gate, read: _Read, owners: frozenset[int]) -> tuple[Gate, frozenset[str]]:
    """The gate with what is in its files, and the fingerprints that it revokes."""
    path, raw, policy_owners = read
    scopes: dict[tuple[str, str], tuple[Place, ...]] = {}
    default = None
    if raw is not None:
        what = shown(path)
        policy = parse_policy(raw, what)
        default, scopes = _policy(files, policy, what, policy_owners)
    revoked: frozenset[str] = frozenset()
    if gate.directory and files.is_there(gate.directory):
        for place, rule in _rules(files, gate.directory, owners):
            key = rule.transport, rule.prefix
            scopes[key] = (*scopes.get(key, ()), place)
        revoked = read_revoked(files, gate.directory, owners)
    return replace(gate, policy=path if raw is not None else "", scopes=scopes, default=default), revoked


def _policy(
    files: Files, policy: Policy, what: str, owners: frozenset[int]
) -> tuple[Place, dict[tuple[str, str], tuple[Place, ...]]]:
    """Places of a policy, with the keys that it names."""

    def demands(requirements: tuple[Requirement, ...]) -> tuple[Demand, ...]:
        return tuple(_demand(files, requirement, what, owners) for requirement in requirements)

    scopes: dict[tuple[str, str], tuple[Place, ...]] = {
        (transport, scope): (Place(what, f"{transport} {shown(scope) or 'default'}", demands(found)),)
        for (transport, scope), found in policy.scopes.items()
    }
    return Place(what, "default", demands(policy.default)), scopes


def _demand(files: Files, requirement: Requirement, what: str, owners: frozenset[int]) -> Demand:
    keys: list[Key] = []
    for source in requirement.keys:
        keys += _keys(files, source, requirement.kind, what, owners)
    return Demand(
        requirement.kind, tuple(keys), identity=requirement.identity, unsupported=requirement.unsupported
    )


def _keys(files: Files, source: KeySource, kind: str, what: str, owners: frozenset[int]) -> tuple[Key, ...]:
    """The keys of one key file, or of data within the policy."""
    import base64
    import binascii

    if source.path:
        origin = shown(source.path)
        raw = files.read(source.path, owners)
        if raw is None:
            raise TrustUnusable(f"{what}: key {origin}: not there (ENOENT)")
    else:
        origin = f"in {what}"
        try:
            raw = base64.b64decode(source.text, validate=True)
        except (binascii.Error, ValueError):
            raise TrustUnusable(f"{what}: key data: not base64") from None
    return parse_openpgp(raw, origin) if kind == SIGNED_BY else (parse_pem(raw, origin),)


# --------------------------------------------------------------------------- trust directories


def read_rules(files: Files, directory: str, owners: frozenset[int]) -> tuple[tuple[str, Rule], ...]:
    """Paths and rules of a trust directory.  Raises TrustUnusable."""
    found = []
    for name in files.names(f"{directory}/rules", owners):
        path = f"{directory}/rules/{name}"
        raw = files.read(path, owners)
        if raw is None:
            raise TrustUnusable(f"{shown(path)}: went while it was read", hint="try again")
        rule = rules.parse_rule(raw, shown(path))
        # Two files for one prefix would be two answers.
        if name != rules.file_name(rule.transport, rule.prefix):
            raise TrustUnusable(f"{shown(path)}: its name is not that of its rule")
        found.append((path, rule))
    return tuple(found)


def _rules(files: Files, directory: str, owners: frozenset[int]) -> tuple[tuple[Place, Rule], ...]:
    return tuple(
        (
            Place(
                shown(path),
                f"{rule.transport} {shown(rule.prefix)}",
                (
                    Demand(
                        "prefix",
                        tuple(read_key(files, directory, key, owners) for key in rule.keys),
                        rule.threshold,
                        Identity("matchRepository"),
                        nameless=not rule.named,
                    ),
                ),
            ),
            rule,
        )
        for path, rule in read_rules(files, directory, owners)
    )


def read_key(files: Files, directory: str, fingerprint: str, owners: frozenset[int]) -> Key:
    """A key of a trust directory, which must be the one that its name says.  Raises TrustUnusable."""
    path = f"{directory}/keys/{rules.key_file(fingerprint)}"
    raw = files.read(path, owners)
    if raw is None:
        raise TrustUnusable(f"{shown(path)}: not there (ENOENT), but a rule asks for that key")
    found = parse_keys(raw, shown(path))
    if len(found) != 1 or found[0].fingerprint != fingerprint:
        raise TrustUnusable(f"{shown(path)}: holds another key than its name says")
    assert found[0].kind in (OPENPGP, PEM)
    return found[0]


def read_revoked(files: Files, directory: str, owners: frozenset[int]) -> frozenset[str]:
    """Fingerprints that a trust directory revokes.  Raises TrustUnusable for a name that is none.

    A misspelt one would be a key that is still accepted.
    """
    found = set()
    for name in files.names(f"{directory}/revoked", owners):
        fingerprint = rules.revoked_fingerprint(name)
        if fingerprint is None:
            raise TrustUnusable(
                f"{shown(f'{directory}/revoked/{name}')}: expected the fingerprint of a key as its name"
            )
        found.add(fingerprint)
    return frozenset(found)
