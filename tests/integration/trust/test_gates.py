# SPDX-License-Identifier: Apache-2.0
"""Gates: which files are read, whose they must be, which rule decides, and how two gates combine."""

from __future__ import annotations

import base64
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from hpcpod.errors import TrustUnusable
from hpcpod.frozen import replace
from hpcpod.images.trust import directory, gates
from hpcpod.images.trust.facts import Signature, SignatureKind, Subject, Verdict
from hpcpod.images.trust.gates import Gates
from hpcpod.images.trust.judge import judge, refuse
from hpcpod.images.trust.keys import Key, parse_pem
from hpcpod.images.trust.rules import Rule, file_name, key_file
from hpcpod.settings import Settings
from tests.integration.trust.conftest import Ring
from tests.testbed.signing import NOW, pem_pair, pem_sign, simple_payload
from tests.testbed.trusting import DIGEST, IMAGE, REPOSITORY

ACCEPT, REJECT = [{"type": "insecureAcceptAnything"}], [{"type": "reject"}]
KEY = parse_pem(pem_pair("p256")[1], "test")
PAYLOAD = simple_payload(DIGEST, REPOSITORY, "cosign container image signature")
SIGNED = Signature(
    SignatureKind.COSIGN, base64.b64encode(pem_sign(pem_pair("p256")[0], PAYLOAD)), "sig", PAYLOAD
)


@dataclass
class Site:
    """Places of a site's and of a user's files, all of them in a test's own directory."""

    path: Path
    monkeypatch: pytest.MonkeyPatch
    settings: Settings = field(default_factory=Settings)

    def __post_init__(self) -> None:
        for name in ("etc", "home/.config/containers"):
            (self.path / name).mkdir(parents=True)
        for name, constant in (
            ("own.json", "_SITE_POLICY"),
            ("shared.json", "_SHARED_POLICY"),
            ("trust", "SITE_DIRECTORY"),
        ):
            self.monkeypatch.setattr(gates, constant, str(self.path / "etc" / name))

    def write(self, name: str, document: Any) -> Path:
        path = self.path / name
        path.write_bytes(document if isinstance(document, bytes) else json.dumps(document).encode())
        path.chmod(0o644)
        return path

    def policy(self, default: Any, name: str = "etc/own.json", **transports: Any) -> Path:
        return self.write(name, {"default": default, "transports": transports})

    def add(self, where: str, prefix: str, *keys: Key, **more: Any) -> Rule:
        return directory.add(str(self.path / where), Rule("docker", prefix, (), **more), keys)

    def read(self) -> Gates:
        return gates.gates(self.settings, {"HOME": str(self.path / "home")}, os.geteuid())

    def judge(self, *signatures: Signature, image: Subject = IMAGE, site: bool = False) -> Verdict:
        return judge(self.read(), image, signatures, int(time.time()) + 1, site=site)


USER_POLICY = "home/.config/containers/policy.json"
SITE_TRUST, USER_TRUST = "etc/trust", "home/.config/hpcpod/trust"


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    """A site without any rules; tests that use it need "root", whose files the site's are."""
    return Site(tmp_path, monkeypatch)


pytestmark = pytest.mark.needs("root")


def test_without_any_gate(site: Site) -> None:
    unsigned = site.judge()
    assert (unsigned.accepted, unsigned.rule) == (True, "")
    refused = site.judge(SIGNED, site=True)
    assert not refused.accepted
    assert "no rule is for it; it asks for a rule of the site" in refuse(refused, IMAGE).message
    site.settings = replace(site.settings, user_unsigned="reject")
    assert not site.judge().accepted


def test_what_a_distribution_ships_decides_nothing_for_the_site(site: Site) -> None:
    site.policy(ACCEPT, "etc/shared.json")
    shipped = site.judge()
    assert shipped.accepted
    assert shipped.rule.startswith("default of")
    assert not site.judge(site=True).accepted
    strict = replace(site.settings, user_unsigned="reject")
    site.settings = strict
    assert not site.judge().accepted
    # Somebody who says so in hpcpod's own file, or names that one, has decided.
    site.settings = replace(site.settings, trust_policy=str(site.path / "etc/shared.json"))
    assert site.judge(site=True).accepted
    assert site.judge().accepted
    site.settings = strict
    site.policy(ACCEPT)
    assert site.judge(site=True).accepted


def test_a_scope_in_the_shared_file_is_a_decision(site: Site) -> None:
    site.policy(ACCEPT, "etc/shared.json", docker={"registry.example.com": ACCEPT})
    assert site.judge(site=True).accepted
    site.policy(REJECT, "etc/shared.json")
    assert not site.judge().accepted


def test_the_first_policy_that_there_is(site: Site) -> None:
    site.policy(REJECT, "etc/shared.json")
    site.policy(ACCEPT)
    assert site.judge().accepted
    site.settings = replace(site.settings, trust_policy=str(site.policy(REJECT, "etc/third.json")))
    assert not site.judge().accepted
    (site.path / "etc/third.json").unlink()
    with pytest.raises(TrustUnusable, match=r"third.json: not there \(ENOENT\), but hpcpod.toml names it"):
        site.judge()


SCOPES = [
    "registry.example.com/site/app:1",
    "registry.example.com/site/app",
    "registry.example.com/site",
    "registry.example.com",
    "*.example.com",
    "*.com",
    "",
]
FULL = replace(IMAGE, scopes=(*IMAGE.scopes, "*.example.com", "*.com"))


@pytest.mark.parametrize("number", range(len(SCOPES)))
def test_the_longest_prefix_decides(site: Site, number: int) -> None:
    docker = dict.fromkeys(SCOPES[number + 1 :], REJECT) | {SCOPES[number]: ACCEPT}
    site.policy(REJECT, docker=docker)
    verdict = site.judge(image=FULL, site=True)
    assert verdict.accepted
    assert verdict.rule.startswith(f"docker {SCOPES[number] or 'default'} of ")
    assert not site.judge(image=replace(FULL, transport="oci")).accepted


@pytest.mark.parametrize(
    "other",
    [
        "registry.example.com/sit",
        "registry.example.com/site/ap",
        "example.com",
        "registry.example.co",
        "*.org",
    ],
)
def test_prefixes_end_with_words(site: Site, other: str) -> None:
    site.policy(REJECT, docker={other: ACCEPT})
    assert not site.judge(image=FULL).accepted


def test_prefix_rules_and_policies(site: Site) -> None:
    """The longest prefix wherever it is written; at equal length the policy."""
    site.add(SITE_TRUST, "registry.example.com/site", KEY)
    assert site.judge(SIGNED, site=True).accepted
    assert not site.judge(site=True).accepted
    assert not site.judge().accepted
    site.policy(REJECT, docker={"registry.example.com": REJECT, "": REJECT})
    assert site.judge(SIGNED, site=True).accepted
    site.policy(REJECT, docker={"registry.example.com/site/app": ACCEPT})
    assert site.judge(site=True).accepted
    site.policy(ACCEPT, docker={"registry.example.com/site": REJECT})
    assert not site.judge(SIGNED, site=True).accepted
    site.policy(ACCEPT)
    assert not site.judge(site=True).accepted
    elsewhere = replace(IMAGE, scopes=("registry.example.com/other",))
    assert site.judge(image=elsewhere, site=True).accepted


@pytest.mark.parametrize("sites", [ACCEPT, REJECT, None], ids=["accept", "reject", "none"])
@pytest.mark.parametrize("users", [ACCEPT, REJECT, None], ids=["accept", "reject", "none"])
def test_both_gates(site: Site, sites: Any, users: Any) -> None:
    """The table of docs/reference/trust.md."""
    if sites:
        site.policy(sites)
    if users:
        site.policy(users, USER_POLICY)
    forbidden = REJECT in (sites, users)
    assert site.judge().accepted is not forbidden
    assert site.judge(site=True).accepted is (sites == ACCEPT and not forbidden)


def test_the_users_rules_forbid_more(site: Site) -> None:
    site.policy(ACCEPT)
    site.add(USER_TRUST, "registry.example.com", KEY)
    assert not site.judge().accepted
    assert site.judge(SIGNED).accepted
    site.policy(REJECT)
    assert not site.judge(SIGNED).accepted


def test_revocation(site: Site) -> None:
    site.add(SITE_TRUST, "registry.example.com", KEY)
    assert site.judge(SIGNED).accepted
    for where in (SITE_TRUST, USER_TRUST):
        assert directory.revoke(str(site.path / where), KEY.fingerprint)
        assert not directory.revoke(str(site.path / where), KEY.fingerprint)
        assert not site.judge(SIGNED).accepted
        (site.path / where / "revoked" / KEY.fingerprint.replace(":", "-")).unlink()
        assert site.judge(SIGNED).accepted
    (site.path / SITE_TRUST / "revoked" / "A key of mine").touch()
    with pytest.raises(TrustUnusable, match="expected the fingerprint of a key"):
        site.judge(SIGNED)


def test_a_policy_with_keys(site: Site, ring: Ring) -> None:
    site.write("etc/a.gpg", ring.gpg.public("good", "second"))
    site.write("etc/b.gpg", ring.gpg.public("third", armor=True))
    both = {
        "type": "signedBy",
        "keyType": "GPGKeys",
        "keyPaths": [str(site.path / f"etc/{x}.gpg") for x in "ab"],
    }
    here = {**both, "keyData": base64.b64encode(ring.gpg.public("good")).decode()}
    del here["keyPaths"]
    site.policy([both, here])
    message = simple_payload(DIGEST, IMAGE.identity)

    def by(name: str) -> Signature:
        return Signature(SignatureKind.SIMPLE, ring.gpg.message(message, name), "lookaside")

    assert site.judge(by(ring.good), site=True).accepted  # meets both
    assert not site.judge(by(ring.third)).accepted  # the first alone
    assert not site.judge(by(ring.stranger)).accepted
    assert len(site.judge(by(ring.third)).checks) == 2
    site.policy([both, here, *REJECT])
    assert not site.judge(by(ring.good)).accepted
    site.policy([both, *ACCEPT])
    assert site.judge(by(ring.third)).accepted
    assert not site.judge().accepted


def test_requirements_that_cannot_be_checked_reject(site: Site) -> None:
    key = {"type": "sigstoreSigned", "keyData": base64.b64encode(pem_pair("p256")[1]).decode()}
    named = {"signedIdentity": {"type": "matchRepository"}}
    site.policy([{**key, **named}])
    assert site.judge(SIGNED).accepted
    site.policy([{**key, **named, "rekorPublicKeyData": "AAAA"}])
    verdict = site.judge(SIGNED)
    assert not verdict.accepted
    assert "rekorPublicKeyData is not supported here" in refuse(verdict, IMAGE).message


# --------------------------------------------------------------------------- files


def instead(path: Path, make: Callable[[Path], Any]) -> None:
    path.unlink()
    make(path)


BAD_FILES: dict[str, Callable[[Path], Any]] = {
    "writable by all": lambda path: path.chmod(0o646),
    "writable by the group": lambda path: path.chmod(0o664),
    "somebody else's": lambda path: os.chown(path, 1001, 0),
    "a directory": lambda path: instead(path, Path.mkdir),
    "a FIFO": lambda path: instead(path, os.mkfifo),
    "a link to nothing": lambda path: instead(path, lambda path: path.symlink_to("absent")),
    "a device": lambda path: instead(path, lambda path: path.symlink_to("/dev/zero")),
    "broken": lambda path: path.write_bytes(b"{"),
    "empty": lambda path: path.write_bytes(b""),
    "too long": lambda path: path.write_bytes(bytes(2 << 20)),
    "in a directory open to all": lambda path: path.parent.chmod(0o777),
    "in somebody else's directory": lambda path: os.chown(path.parent, 1001, 0),
}


@pytest.mark.parametrize("case", BAD_FILES)
@pytest.mark.parametrize("which", ["policy", "rule", "key", "policy's key"])
def test_files_that_cannot_be_trusted(site: Site, case: str, which: str) -> None:
    rule = site.add(SITE_TRUST, "registry.example.com", KEY)
    pem = site.write("etc/key.pub", pem_pair("p256")[1])
    policy = site.policy(
        REJECT, docker={"registry.example.com/x": [{"type": "sigstoreSigned", "keyPath": str(pem)}]}
    )
    assert site.judge(SIGNED).accepted
    trust = site.path / SITE_TRUST
    path = {
        "policy": policy,
        "policy's key": pem,
        "rule": trust / "rules" / file_name("docker", rule.prefix),
        "key": trust / "keys" / key_file(KEY.fingerprint),
    }[which]
    BAD_FILES[case](path)
    with pytest.raises(TrustUnusable) as caught:
        site.judge(SIGNED)
    assert str(site.path) in caught.value.message


def test_files_of_a_trust_directory_are_what_their_names_say(site: Site) -> None:
    other = parse_pem(pem_pair("ed25519")[1], "x")
    rule = site.add(SITE_TRUST, "registry.example.com", KEY)
    trust = site.path / SITE_TRUST
    key = trust / "keys" / key_file(KEY.fingerprint)
    good = key.read_bytes()
    key.write_bytes(pem_pair("ed25519")[1])
    with pytest.raises(TrustUnusable, match="holds another key"):
        site.judge(SIGNED)
    key.unlink()
    with pytest.raises(TrustUnusable, match="a rule asks for that key"):
        site.judge(SIGNED)
    key.write_bytes(good)
    (trust / "rules" / file_name("docker", rule.prefix)).rename(trust / "rules" / "mine.json")
    with pytest.raises(TrustUnusable, match="its name is not that of its rule"):
        site.judge(SIGNED)
    assert other.fingerprint != KEY.fingerprint


def test_what_begins_with_a_dot_is_in_the_making(site: Site) -> None:
    site.add(SITE_TRUST, "registry.example.com", KEY)
    for name in ("rules", "revoked"):
        (site.path / SITE_TRUST / name / ".half").write_bytes(b"{")
    assert site.judge(SIGNED).accepted


def test_users_files(site: Site) -> None:
    """Their own, or root's; nobody else's."""
    site.policy(REJECT, USER_POLICY)
    assert not site.judge().accepted
    os.chown(site.path / USER_POLICY, 1001, 1001)
    with pytest.raises(TrustUnusable, match="owner 1001"):
        site.judge()
    found = gates.gates(site.settings, {"HOME": str(site.path / "home")}, 1001)
    assert not judge(found, IMAGE, (), NOW, site=False).accepted
    for home in ({}, {"HOME": "relative"}, {"HOME": "/dev/null"}, {"HOME": "/absent"}):
        assert judge(gates.gates(site.settings, home, 1001), IMAGE, (), NOW, site=False).accepted


def test_stamps_and_fingerprint(site: Site) -> None:
    """Whatever can change a verdict is named: what was read, and what was not there."""
    first = site.read()
    assert first.is_open and not first.fingerprint  # there is no verdict to remember
    absent = {stamp.path for stamp in first.stamps if stamp.ino == 0}
    assert {str(site.path / name) for name in ("etc/own.json", "etc/shared.json", USER_POLICY)} <= absent
    assert str(site.path / SITE_TRUST) in absent
    assert site.read() == first
    seen: set[str] = set()

    def changed(name: str) -> None:
        now = site.read()
        assert now.fingerprint not in seen
        seen.add(now.fingerprint)
        (stamp,) = (stamp for stamp in now.stamps if stamp.path == str(site.path / name))
        status = os.stat(site.path / name)
        assert (stamp.ino, stamp.size, stamp.mtime_ns) == (status.st_ino, status.st_size, status.st_mtime_ns)

    site.policy(REJECT, "etc/shared.json")
    changed("etc/shared.json")
    site.policy(ACCEPT)
    changed("etc/own.json")
    site.policy(ACCEPT, USER_POLICY)
    changed(USER_POLICY)
    site.add(SITE_TRUST, "registry.example.com", KEY)
    changed(f"{SITE_TRUST}/keys/{key_file(KEY.fingerprint)}")
    changed_rules = f"{SITE_TRUST}/rules"
    site.add(SITE_TRUST, "registry.example.com/x", KEY)
    changed(changed_rules)
    directory.revoke(str(site.path / USER_TRUST), KEY.fingerprint)
    changed(f"{USER_TRUST}/revoked")
    directory.remove(str(site.path / SITE_TRUST), "docker", "registry.example.com")
    changed(changed_rules)
    site.settings = replace(site.settings, user_unsigned="reject")
    changed(changed_rules)


def test_nothing_is_loaded_that_judging_needs(site: Site) -> None:
    """Reading gates is on the way of each start that prepares: no gpg, no library of cryptography."""
    import subprocess
    import sys

    site.add(SITE_TRUST, "registry.example.com", KEY)
    site.settings = replace(site.settings, trust_directory=str(site.path / SITE_TRUST))
    program = (
        "import sys; from hpcpod.images.trust import gates; from hpcpod.settings import Settings; "
        f"gates.gates(Settings(trust_directory={str(site.path / SITE_TRUST)!r}), {{}}, 0); "
        "print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "hpcpod.images.trust.gates" in loaded
    assert not loaded & {"cryptography", "Crypto", "subprocess", "typing", "hpcpod.images.trust.gpg"}
