# SPDX-License-Identifier: Apache-2.0
"""An image is judged whenever a start is prepared, by the policies of that moment."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.integration.admission.conftest import REPOSITORY, Shelf, Starter

pytestmark = [pytest.mark.needs("native", "userns", "registry", "cosign"), pytest.mark.signs]


def by(*keys: Path, **more: Any) -> dict[str, Any]:
    """The requirement of a cosign signature by one of these keys."""
    return {
        "type": "sigstoreSigned",
        "keyPaths": [str(key) for key in keys],
        "signedIdentity": {"type": "matchRepository"},
        **more,
    }


def key(shelf: Shelf, starter: Starter, name: str) -> Path:
    """The public key, where the user keeps it."""
    path = starter.account.home / f"{name}.pub"
    starter.write(path, (shelf.cosign.directory / f"{name}.pub").read_text())
    return path


def test_a_policy_that_comes_later_counts(shelf: Shelf, starter: Starter) -> None:
    assert starter.version(shelf.reference) == "one"
    assert starter.version(shelf.reference) == "one"  # from a plan on file
    starter.policy(by(key(shelf, starter, "a")))
    message = starter.refused(shelf.reference)
    assert "no signature" in message and "policy.json" in message
    shelf.sign("a")
    assert starter.version(shelf.reference) == "one"
    shelf.stop()
    # The signature was kept; so was the verdict.
    assert starter.version(shelf.reference, "--env=A=1") == "one"
    starter.policy(by(key(shelf, starter, "b")))
    assert "rule" in starter.refused(shelf.reference, "--pull=never")


def test_a_policy_that_goes_counts_too(shelf: Shelf, starter: Starter) -> None:
    policy = starter.policy({"type": "reject"})
    starter.refused(shelf.reference)
    policy.unlink()
    assert starter.version(shelf.reference) == "one"
    starter.policy({"type": "reject"})
    starter.refused(shelf.reference)


def test_a_key_that_is_revoked_later_counts(shelf: Shelf, starter: Starter) -> None:
    shelf.sign("a", bundle=True)
    added = starter.hpcpod("trust", "add", "--yes", "--prefix", shelf.name, key(shelf, starter, "a"))
    assert added.returncode == 0, added.stderr
    assert starter.version(shelf.reference) == "one"
    shelf.stop()
    (fingerprint,) = re.findall("sha256:[0-9a-f]{64}", added.stderr)
    assert starter.hpcpod("trust", "revoke", fingerprint).returncode == 0
    assert "a trust directory revokes" in starter.refused(shelf.reference, "--pull=never")


def test_a_signature_for_another_name_does_not_do(shelf: Shelf, starter: Starter) -> None:
    """The same image and its signature in another repository."""
    starter.policy(by(key(shelf, starter, "a")))
    shelf.sign("a")
    assert starter.version(shelf.reference) == "one"
    shelf.put("one", "b/other:1")
    other = f"{shelf.registry.host}/b/other:1"
    shelf.cosign.run("copy", "--allow-http-registry", "--force", f"{shelf.name}:1", other)
    message = starter.refused(f"docker://{other}")
    assert f"{shelf.registry.host}/{REPOSITORY}" in message


def test_a_moved_tag_needs_a_signature_of_its_own(shelf: Shelf, starter: Starter) -> None:
    starter.policy(by(key(shelf, starter, "a")))
    shelf.sign("a")
    assert starter.version(shelf.reference) == "one"
    shelf.put("two")
    starter.refused(shelf.reference, "--pull=always")
    assert starter.version(shelf.reference) == "one"


def test_a_user_waives_their_own_policy_only(shelf: Shelf, starter: Starter, tmp_path: Path) -> None:
    starter.policy({"type": "reject"})
    starter.refused(shelf.reference)
    assert starter.version(shelf.reference, "--insecure-options=signature") == "one"
    site = starter.account.home / "site.json"
    starter.write(site, json.dumps({"default": [{"type": "reject"}]}))
    config = starter.account.home / "hpcpod.toml"
    starter.write(config, f'[trust]\npolicy = "{site}"\n')
    starter.env["HPCPOD_CONFIG"] = str(config)
    assert str(site) in starter.refused(shelf.reference, "--insecure-options=signature")


def test_pull_and_unpack_judge_as_run_does(shelf: Shelf, starter: Starter) -> None:
    starter.policy(by(key(shelf, starter, "a")))
    for words in (("pull",), ("unpack",)):
        place = (starter.account.home / "tree",) if words == ("unpack",) else ()
        done = starter.hpcpod("image", *words, "--insecure-options=http", shelf.reference, *place)
        assert done.returncode == 125 and "[image-untrusted]" in done.stderr
        waived = "--insecure-options=http,signature"
        assert starter.hpcpod("image", *words, waived, shelf.reference, *place).returncode == 0
    assert json.loads(starter.hpcpod("image", "list", "--json").stdout)
    starter.refused(shelf.reference)


def test_a_broken_policy_accepts_nothing(shelf: Shelf, starter: Starter) -> None:
    assert starter.version(shelf.reference) == "one"
    starter.policy({"type": "signedby"})
    assert "policy.json" in starter.refused(shelf.reference, slug="trust-unusable")


def test_a_file_is_judged_by_its_path(shelf: Shelf, starter: Starter) -> None:
    for version, layout in shelf.layouts.items():
        shutil.copytree(layout, starter.account.home / version)
    one = starter.account.home / "one"
    assert starter.version(f"oci:{one}:latest") == "one"
    scopes = {str(one): [{"type": "insecureAcceptAnything"}]}
    path = starter.account.home / ".config/containers/policy.json"
    starter.write(path, json.dumps({"default": [{"type": "reject"}], "transports": {"oci": scopes}}))
    assert starter.version(f"oci:{one}:latest") == "one"
    starter.refused(f"oci:{starter.account.home / 'two'}:latest")
