# SPDX-License-Identifier: Apache-2.0
"""What name a signature must be for: ``signedIdentity`` of containers-policy.json(5).  Pure.

A name counts in its full form, with the host of Docker Hub where none is written.
"""

from __future__ import annotations

from hpcpod.frozen import frozen, replace
from hpcpod.images.dockername import DockerName, parse_name
from hpcpod.log import shown

_DIGITS = {"sha256": 64, "sha384": 96, "sha512": 128}
_HEX = frozenset("0123456789abcdef")


@frozen
class Identity:
    """One rule.

    kind: its ``type`` in a policy.  value: of exactReference and exactRepository, or the prefix of
    remapIdentity; signed: what that prefix becomes.
    """

    kind: str = "matchRepoDigestOrExact"
    value: str = ""
    signed: str = ""

    def __str__(self) -> str:
        if self.kind == "remapIdentity":
            return f"its own name, {shown(self.value)} being {shown(self.signed)}"
        if self.kind == "exactReference":
            return f"the name {shown(self.value)}"
        if self.kind == "exactRepository":
            return f"any tag of {shown(self.value)}"
        return _WORDS[self.kind]


_WORDS = {
    "matchExact": "exactly its name",
    "matchRepoDigestOrExact": "its name, or any tag of it where a digest names the image",
    "matchRepository": "any tag of its repository",
}
KINDS = (*_WORDS, "exactReference", "exactRepository", "remapIdentity")


def parse(text: str) -> DockerName | None:
    """A name with a host; None for what is no name."""
    name = parse_name(text, short=False)
    if name is None or (name.digest and not _is_digest(name.digest)):
        return None
    return name


def is_prefix(text: str) -> bool:
    """Whether text is a host, or a host with a part of a repository's path, without a tag."""
    name = parse_name(f"{text}/x", short=True)
    return name is not None and bool(name.host) and not name.tag and not name.digest


def accepts(rule: Identity, image: str, signed: str) -> bool:
    """Whether an image of this name may have a signature for that one.

    image: empty where the transport has no names; only exactReference and exactRepository can then accept.
    """
    found = parse(signed)
    wanted = parse(rule.value if rule.kind in ("exactReference", "exactRepository") else image)
    if found is None or wanted is None:
        return False
    if rule.kind in ("matchRepository", "exactRepository"):
        return _repository(found) == _repository(wanted)
    if rule.kind in ("matchExact", "exactReference"):
        return bool(wanted.tag or wanted.digest) and found == wanted
    if rule.kind == "remapIdentity":
        remapped = _remapped(wanted, rule)
        return remapped is not None and _exact_but_for_digest(remapped, found)
    return rule.kind == "matchRepoDigestOrExact" and _exact_but_for_digest(wanted, found)


def _exact_but_for_digest(wanted: DockerName, found: DockerName) -> bool:
    """Equal, or of one repository where the image's name has a digest instead of a tag.

    The digest itself is compared with the image elsewhere, always.  So a name with both is as good as its
    tag alone.
    """
    if not found.tag and not found.digest:
        return False
    if wanted.tag:
        return replace(found, digest=found.digest or wanted.digest) == wanted
    return bool(wanted.digest) and _repository(found) == _repository(wanted)


def _remapped(name: DockerName, rule: Identity) -> DockerName | None:
    """The name with another beginning; the same where the rule's prefix is not its beginning."""
    host, path = _repository(name)
    repository = f"{host}/{path}"
    if repository != rule.value and not repository.startswith(f"{rule.value}/"):
        return name
    text = rule.signed + repository[len(rule.value) :]
    made = parse_name(text, short=True)
    # A prefix replaced by a host alone may leave a name that another host would be read from.
    if made is None or str(made) != text or not made.host:
        return None
    return replace(made, tag=name.tag, digest=name.digest)


def _repository(name: DockerName) -> tuple[str, str]:
    return name.host, name.path


def _is_digest(text: str) -> bool:
    algorithm, _, digits = text.partition(":")
    return len(digits) == _DIGITS.get(algorithm) and _HEX.issuperset(digits)
