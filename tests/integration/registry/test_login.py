# SPDX-License-Identifier: Apache-2.0
"""Logging in: tokens that expire, identity tokens, credential helpers."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hpcpod.errors import UsageError
from tests.integration.registry.conftest import TREE, log_in
from tests.testbed.authority import Authority
from tests.testbed.pulls import Puller
from tests.testbed.registry import PASSWORD, USER, Registry

pytestmark = pytest.mark.needs("registry")

# --------------------------------------------------------------------------- tokens


@pytest.fixture
def tokens(tmp_path: Path, authority: Authority, layout: Path) -> Iterator[Registry]:
    with Registry(tmp_path / "registry", authority, "token") as registry:
        registry.push(layout, "ns/image:1", tag="gzip")
        yield registry


@pytest.mark.parametrize("said", [3600, None, 0])
def test_token_that_expires_in_mid_pull(said: int | None, tokens: Registry, puller: Puller) -> None:
    """It is renewed, whether the server said the truth about it or not."""
    log_in(puller, tokens)
    assert tokens.tokens
    tokens.tokens.seconds, tokens.tokens.said_seconds = 2, said
    # docker-registry takes a token for a minute more than it says.
    tokens.tokens.leeway = 60
    pulled = puller.pull(f"docker://{tokens.host}/ns/image:1", before_unpacking=lambda: time.sleep(3))
    assert pulled.tree == TREE, pulled.error
    assert len(tokens.tokens.asked) >= 3  # of the push, of finding, of the layers


@pytest.mark.parametrize("name", ["token", "access_token"])
def test_names_of_a_token(name: str, tokens: Registry, puller: Puller) -> None:
    log_in(puller, tokens)
    assert tokens.tokens
    tokens.tokens.name = name
    assert puller.pull(f"docker://{tokens.host}/ns/image:1").tree == TREE


def test_one_token_for_all(tokens: Registry, puller: Puller) -> None:
    log_in(puller, tokens)
    assert tokens.tokens
    tokens.tokens.asked.clear()
    assert puller.pull(f"docker://{tokens.host}/ns/image:1").tree == TREE
    assert len(tokens.tokens.asked) == 1
    assert "scope=repository%3Ans%2Fimage%3Apull" in tokens.tokens.asked[0].path


def test_identity_token(tokens: Registry, puller: Puller) -> None:
    log_in(puller, tokens)
    assert tokens.tokens
    auths = {tokens.host: {"identitytoken": tokens.tokens.refresh}}
    (puller.home / ".config/containers/auth.json").write_text(json.dumps({"auths": auths}))
    tokens.tokens.asked.clear()
    assert puller.pull(f"docker://{tokens.host}/ns/image:1").tree == TREE
    (asked,) = tokens.tokens.asked
    assert asked.method == "POST" and b"grant_type=refresh_token" in asked.body
    assert tokens.tokens.refresh not in asked.path


# --------------------------------------------------------------------------- credential helpers


HELPER = """#!/bin/sh
read -r server
env > "$HOME/seen"
printf '%s %s\\n' "$*" "$server" >> "$HOME/asked"
case $server in
    HOST) printf '{"ServerURL": "%s", "Username": "USER", "Secret": "PASSWORD"}' "$server" ;;
    *) echo 'credentials not found in native keychain'; exit 1 ;;
esac
"""


@pytest.mark.parametrize("kind", ["credHelpers", "credsStore"])
def test_credential_helper(
    kind: str, tmp_path: Path, authority: Authority, layout: Path, puller: Puller
) -> None:
    with Registry(tmp_path / "registry", authority, "basic") as registry:
        registry.push(layout, "ns/image:1", tag="gzip")
        log_in(puller, registry, login=False)
        programs = tmp_path / "bin"
        programs.mkdir()
        program = programs / "docker-credential-tests"
        text = HELPER.replace("HOST", registry.host).replace("USER", USER).replace("PASSWORD", PASSWORD)
        program.write_text(text)
        program.chmod(0o755)
        puller.environment |= {
            "PATH": f"{programs}:{puller.environment['PATH']}",
            "LD_PRELOAD": "",
            "SECRET": "x",
        }
        value: Any = {registry.host: "tests"} if kind == "credHelpers" else "tests"
        docker = puller.home / ".docker"
        docker.mkdir()
        (docker / "config.json").write_text(json.dumps({"auths": {registry.host: {}}, kind: value}))
        assert puller.pull(f"docker://{registry.host}/ns/image:1").tree == TREE
        assert (puller.home / "asked").read_text() == f"get {registry.host}\n"
        assert "SECRET" not in (puller.home / "seen").read_text()
        program.write_text("#!/bin/sh\necho 'no such luck'; exit 3\n")
        error = puller.pull(f"docker://{registry.host}/ns/image:1").error
        assert type(error) is UsageError and "docker-credential-tests: ended with status 3" in error.message
        program.unlink()
        error = puller.pull(f"docker://{registry.host}/ns/image:1").error
        assert type(error) is UsageError and "not on PATH" in error.message
