# SPDX-License-Identifier: Apache-2.0
"""``hpcpod trust`` as a user and as root: add, list, rm, revoke, explain."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest

from hpcpod.images.trust.keys import parse_pem
from hpcpod.images.trust.rules import key_file
from tests.conftest import Account
from tests.integration.trust.conftest import Ring
from tests.testbed.layouts import file, image, write_layout
from tests.testbed.signing import Gpg, pem_pair

pytestmark = pytest.mark.needs("native", "plain")
P256 = parse_pem(pem_pair("p256")[1], "x").fingerprint
ED = parse_pem(pem_pair("ed25519")[1], "x").fingerprint
PREFIX = "registry.example.com/site"


def trust(account: Account, front: Path, *words: str, **more: Any) -> subprocess.CompletedProcess[str]:
    return account.run([front, "trust", *words], **more)


def written(account: Account, name: str, data: bytes) -> str:
    path = account.home / name
    path.write_bytes(data)
    path.chmod(0o644)
    return str(path)


def rules(account: Account, front: Path, **more: Any) -> Any:
    return json.loads(trust(account, front, "list", "--json", check=True, **more).stdout)


@pytest.fixture
def pem(user: Account) -> str:
    return written(user, "cosign.pub", pem_pair("p256")[1])


def test_add_list_and_remove(user: Account, front: Path, pem: str) -> None:
    added = trust(user, front, "add", "--prefix", PREFIX, "--yes", pem, check=True)
    assert P256 in added.stderr
    assert added.stdout == ""
    (rule,) = rules(user, front)["rules"]
    assert rule == {
        "gate": "user",
        "transport": "docker",
        "prefix": PREFIX,
        "keys": [P256],
        "threshold": 1,
        "named": False,
    }
    second = written(user, "second.pub", pem_pair("ed25519")[1])
    trust(user, front, "add", "--prefix", PREFIX, "--threshold=2", "--named", "--yes", second, check=True)
    (rule,) = rules(user, front)["rules"]
    assert (rule["keys"], rule["threshold"], rule["named"]) == ([P256, ED], 2, True)
    # Another key alone leaves what was decided.
    trust(user, front, "add", "--prefix", PREFIX, "--yes", pem, check=True)
    assert rules(user, front)["rules"] == [rule]
    assert f"user  docker {PREFIX}  2 of 2, named\n" in trust(user, front, "list", check=True).stdout
    place = user.home / ".config/hpcpod/trust"
    trust(user, front, "add", "--prefix", "other.example.com", "--yes", pem, check=True)
    trust(user, front, "rm", "--prefix", PREFIX, check=True)
    assert sorted(path.name for path in (place / "keys").iterdir()) == [key_file(P256)]
    trust(user, front, "rm", "--prefix", "other.example.com", check=True)
    assert list((place / "keys").iterdir()) == []
    assert list((place / "rules").iterdir()) == []
    assert rules(user, front) == {"rules": [], "revoked": []}
    assert trust(user, front, "rm", "--prefix", PREFIX).returncode == 125


def test_files_of_a_user_with_a_tight_umask(user: Account, front: Path, pem: str) -> None:
    words: list[Any] = [
        "sh",
        "-c",
        'umask 077; exec "$0" trust add --yes --prefix "$1" "$2"',
        front,
        PREFIX,
        pem,
    ]
    user.run(words, check=True)
    place = user.home / ".config/hpcpod/trust"
    assert {path.stat().st_mode & 0o777 for path in place.rglob("*") if path.is_file()} == {0o644}
    assert user.run(["sh", "-c", 'umask 000; exec "$0" trust list', front], check=True).stdout


def test_nobody_to_ask(user: Account, front: Path, pem: str) -> None:
    done = trust(user, front, "add", "--prefix", PREFIX, pem)
    assert (done.returncode, "--yes" in done.stderr, P256 in done.stderr) == (125, True, True)
    assert rules(user, front)["rules"] == []
    done = trust(
        user, front, "add", "--prefix", PREFIX, "--yes", "-", stdin=None, input=Path(pem).read_text()
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("answer", "status"), [("y", 0), ("n", 130), ("", 130)])
def test_a_terminal_is_asked(user: Account, front: Path, pem: str, answer: str, status: int) -> None:
    leader, follower = pty.openpty()
    process = user.start([front, "trust", "add", "--prefix", PREFIX, pem], stdin=follower)
    os.close(follower)
    writer = threading.Timer(0.5, os.write, (leader, f"{answer}\n".encode()))
    writer.start()
    _, errors = process.communicate(timeout=30)
    writer.join()
    os.close(leader)
    assert process.returncode == status, errors
    assert f"Trust this key for docker {PREFIX}?" in errors
    assert bool(rules(user, front)["rules"]) is (status == 0)


BAD: dict[str, tuple[list[str], str]] = {
    "no such file": (["--prefix", PREFIX, "absent"], "no such file"),
    "a directory": (["--prefix", PREFIX, "."], "is a directory"),
    "short name": (["--prefix", "debian", "KEY"], "the host is needed"),
    "no prefix": (["KEY"], "prefix"),
    "no key": (["--prefix", PREFIX], "KEY"),
    "too many": (["--prefix", PREFIX, "--threshold=2", "KEY"], "the rule has 1 keys"),
    "none": (["--prefix", PREFIX, "--threshold=0", "KEY"], "threshold"),
    "no signatures there": (["--prefix", "/srv", "--transport", "oci", "KEY"], "oci"),
    "pem for a file": (["--prefix", "/srv", "--transport", "sif", "KEY"], "OpenPGP keys alone"),
    "relative": (["--prefix", "srv", "--transport", "sif", "KEY"], "absolute path"),
    "rsa": (["--prefix", PREFIX, "RSA"], "RSA 2048, expected ECDSA P-256 or Ed25519"),
    "private": (["--prefix", PREFIX, "PRIVATE"], "a private key"),
    "not a key": (["--prefix", PREFIX, "TEXT"], "not a public key"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_refused(user: Account, front: Path, pem: str, case: str) -> None:
    names = {
        "KEY": pem,
        "RSA": written(user, "rsa.pub", pem_pair("rsa")[1]),
        "PRIVATE": written(user, "key.pem", pem_pair("p256")[0]),
        "TEXT": written(user, "text", b"hello\n"),
    }
    words, said = BAD[case]
    done = trust(user, front, "add", "--yes", *(names.get(word, word) for word in words))
    assert done.returncode in (2, 125)
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert rules(user, front) == {"rules": [], "revoked": []}


@pytest.mark.needs("gpg")
def test_openpgp_keys(user: Account, front: Path, ring: Ring) -> None:
    keys = written(user, "keys.asc", ring.gpg.public("good", "parent", armor=True))
    (user.home / "images").mkdir()
    (user.home / "link").symlink_to("images")
    words = ("add", "--transport=sif", "--prefix", str(user.home / "link"), "--yes")
    added = trust(user, front, *words, keys, check=True)
    assert "good <good@example.com>" in added.stderr
    (rule,) = rules(user, front)["rules"]
    assert (rule["keys"], rule["prefix"]) == ([ring.good, ring.parent], str(user.home / "images"))
    expired = written(user, "expired", ring.gpg.public("expired"))
    done = trust(user, front, *words, expired)
    assert (done.returncode, f"{ring.expired} is expired" in done.stderr) == (125, True)
    with Gpg() as gpg:
        by = gpg.key("gone")
        gpg.revoke(by)
        revoked = written(user, "revoked", gpg.public(by))
    assert f"{by} is revoked" in trust(user, front, *words, revoked).stderr


def test_revoke(user: Account, front: Path) -> None:
    spaced = "0D2A 6D7C 3E6B 9F1A 4C5E  8B7D 9A1F 2E3C 4B5A 6978"
    trust(user, front, "revoke", spaced.lower(), check=True)
    trust(user, front, "revoke", P256, check=True)
    found = {entry["fingerprint"] for entry in rules(user, front)["revoked"]}
    assert found == {spaced.replace(" ", ""), P256}
    assert trust(user, front, "revoke", "4B5A6978").returncode == 125


# --------------------------------------------------------------------------- explain


@pytest.fixture
def layout(user: Account) -> str:
    path = user.home / "image"
    write_layout(path, image(file(b"hello")))
    return f"oci:{path}"


def configured(user: Account, document: Any, **trust_table: str) -> dict[str, str]:
    """The environment of a site with this policy, in files of the user's own."""
    policy = written(user, "policy.json", json.dumps(document).encode())
    lines = [f'policy = "{policy}"', f'directory = "{user.home}/site-trust"']
    lines += [f'{key} = "{value}"' for key, value in trust_table.items()]
    toml = written(user, "hpcpod.toml", ("[trust]\n" + "\n".join(lines) + "\n").encode())
    if os.geteuid() == 0:
        for name in (policy, toml):
            os.chown(name, user.uid, user.uid)
    return {"HPCPOD_CONFIG": toml}


def test_explain(user: Account, front: Path, layout: str) -> None:
    accept, reject = [{"type": "insecureAcceptAnything"}], [{"type": "reject"}]
    path = layout.removeprefix("oci:")
    env = configured(user, {"default": reject, "transports": {"oci": {path: accept, "": reject}}})
    done = trust(user, front, "explain", layout, env=env)
    assert done.returncode == 0, done.stderr
    assert "verdict     accepted\n" in done.stdout
    lines = done.stdout.splitlines()
    decides = next(line for line in lines if "decides:" in line)
    assert decides.strip() == f"decides: oci {path} of {user.home}/policy.json"
    passed = [line.strip().split(" of ")[0] for line in lines if "passed over:" in line]
    assert passed == ["passed over: oci default", "passed over: default"]
    key = {"type": "sigstoreSigned", "keyData": "AAAA"}
    env = configured(user, {"default": reject, "transports": {"oci": {path: [key]}}})
    broken = trust(user, front, "explain", layout, env=env)
    assert (broken.returncode, "[trust-unusable]" in broken.stderr) == (125, True)
    env = configured(user, {"default": reject})
    document = json.loads(trust(user, front, "explain", "--json", layout, env=env).stdout)
    assert (document["accepted"], document["gates"][0]["rule"]) == (
        False,
        f"default of {user.home}/policy.json",
    )
    assert document["scopes"][0] == path
    assert trust(user, front, "explain", layout, env=env).returncode == 1


def test_explain_without_rules(user: Account, front: Path, layout: str) -> None:
    env = configured(user, {"default": [{"type": "insecureAcceptAnything"}]})
    assert trust(user, front, "explain", "--site", layout, env=env).returncode == 0
    strict = written(user, "strict.toml", b'[trust]\nuser_unsigned = "reject"\n')
    done = trust(user, front, "explain", "--json", layout, env={"HPCPOD_CONFIG": strict})
    document = json.loads(done.stdout)
    if document["gates"][0]["rule"] == "":  # unless this machine's own /etc has a rule for it
        assert (done.returncode, document["accepted"]) == (1, False)
    assert trust(user, front, "explain", "oci:/absent", env=env).returncode == 125


@pytest.mark.needs("root")
def test_root_changes_the_sites_directory(root_user: Account, user: Account, front: Path, pem: str) -> None:
    place = root_user.home / "site"
    toml = written(root_user, "hpcpod.toml", f'[trust]\ndirectory = "{place}"\n'.encode())
    env = {"HPCPOD_CONFIG": toml}
    trust(root_user, front, "add", "--prefix", PREFIX, "--yes", pem, env=env, check=True)
    assert [rule["gate"] for rule in rules(root_user, front, env=env)["rules"]] == ["site"]
    assert not (root_user.home / ".config").exists()
    for each in (root_user.home, *root_user.home.parents):  # all users of the node can read it
        if each == Path("/var/tmp"):
            break
        each.chmod(0o755)
    assert [rule["prefix"] for rule in rules(user, front, env=env)["rules"]] == [PREFIX]
    assert trust(user, front, "rm", "--prefix", PREFIX, env=env).returncode == 125
    assert [rule["prefix"] for rule in rules(user, front, env=env)["rules"]] == [PREFIX]
