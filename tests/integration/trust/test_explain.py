# SPDX-License-Identifier: Apache-2.0
"""What `hpcpod trust explain` shows of signatures, handed in where a source would find them."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any, Self

import pytest
from click.testing import CliRunner, Result

from hpcpod.cli import trust as command
from hpcpod.images.trust.facts import Signature, SignatureKind, Subject
from hpcpod.images.trust.keys import parse_pem
from tests.integration.trust.conftest import Ring
from tests.testbed.signing import pem_pair, pem_sign, simple_payload
from tests.testbed.trusting import DIGEST, IMAGE, NAME, OTHER, REPOSITORY

pytestmark = pytest.mark.needs("gpg", "root")
KEY = parse_pem(pem_pair("p256")[1], "x").fingerprint


class Handed:
    """A source of one image, with these signatures."""

    def __init__(self, *signatures: Signature) -> None:
        self._signatures = signatures

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def subject(self, _: object) -> Subject:
        return IMAGE

    def signatures(self, _: object) -> tuple[Signature, ...]:
        return self._signatures


def cosign(digest: str, name: str, origin: str) -> Signature:
    payload = simple_payload(digest, name, "cosign container image signature")
    signature = base64.b64encode(pem_sign(pem_pair("p256")[0], payload))
    return Signature(SignatureKind.COSIGN, signature, origin, payload)


@pytest.fixture
def explain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """explain(policy, signature..., words=): what the command says of the image under this policy."""

    def run(document: Any, *signatures: Signature, words: tuple[str, ...] = ()) -> Result:
        policy, toml = tmp_path / "policy.json", tmp_path / "hpcpod.toml"
        policy.write_text(json.dumps(document))
        toml.write_text(f'[trust]\npolicy = "{policy}"\ndirectory = "{tmp_path}/trust"\n')
        for path in (policy, toml):
            path.chmod(0o644)
        monkeypatch.setattr(command, "open_source", lambda *_: Handed(*signatures))
        environment = {"HPCPOD_CONFIG": str(toml), "HOME": str(tmp_path), "XDG_CONFIG_HOME": None}
        return CliRunner(env=environment).invoke(
            command.trust, ["explain", f"docker://{NAME}", *words], standalone_mode=False
        )

    return run


def asking(**more: Any) -> dict[str, Any]:
    data = base64.b64encode(pem_pair("p256")[1]).decode()
    one = {"type": "sigstoreSigned", "keyData": data, "signedIdentity": {"type": "matchRepository"}, **more}
    return {"default": [{"type": "reject"}], "transports": {"docker": {REPOSITORY: [one]}}}


def test_each_signature_and_what_is_wrong_with_it(explain: Any, ring: Ring, tmp_path: Path) -> None:
    simple = Signature(
        SignatureKind.SIMPLE, ring.gpg.message(simple_payload(DIGEST, NAME), ring.good), "lookaside\x1b[2J"
    )
    wrong = cosign(OTHER, REPOSITORY, "first")
    stolen = cosign(DIGEST, "registry.example.com/other/app", "second")
    done = explain(asking(), simple, wrong, stolen)
    assert done.return_value == 1, done.output
    lines = [line.strip() for line in done.output.splitlines()]
    assert f"decides: docker {REPOSITORY} of {tmp_path}/policy.json" in lines
    assert f"passed over: default of {tmp_path}/policy.json" in lines
    assert "simple: lookaside\\x1b[2J" in lines
    assert f"asks for a cosign signature by key {KEY} for any tag of its repository" in lines
    first = lines.index("not accepted: first")
    assert lines[first + 2 : first + 4] == [f"key {KEY}", f"for another image: {OTHER}"]
    assert "for another name: registry.example.com/other/app" in lines
    assert lines[-1] == "verdict     rejected"
    assert "\x1b" not in done.output


def test_accepted(explain: Any, tmp_path: Path) -> None:
    good = cosign(DIGEST, REPOSITORY, "first")
    done = explain(asking(), good)
    assert done.return_value == 0
    assert "verdict     accepted\n" in done.output
    document = json.loads(explain(asking(), good, words=("--json",)).output)
    (check,) = document["gates"][0]["checks"]
    assert (check["key"], check["good"], check["found"], check["origin"]) == (KEY, True, "good", "first")
    assert document["rule"] == f"docker {REPOSITORY} of {tmp_path}/policy.json"
    assert document["signatures"] == [{"kind": "cosign", "origin": "first"}]
    assert [place["scope"] for place in document["gates"][0]["candidates"]] == [
        f"docker {REPOSITORY}",
        "default",
    ]


def test_what_is_not_supported_is_named(explain: Any) -> None:
    done = explain(asking(rekorPublicKeyData="AAAA"), cosign(DIGEST, REPOSITORY, "first"))
    assert done.return_value == 1
    assert "rekorPublicKeyData is not supported here" in done.output
