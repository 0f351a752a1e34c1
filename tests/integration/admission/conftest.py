# SPDX-License-Identifier: Apache-2.0
"""A registry with two versions of an image, keys to sign them with, and a user who starts them."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests import needs
from tests.conftest import Account
from tests.integration.pod.image import small_tree, write_layout
from tests.testbed.authority import Authority
from tests.testbed.registry import Registry
from tests.testbed.signing import Cosign

REPOSITORY = "a/tool"


@dataclass
class Shelf:
    """A registry of its own for a test, plain HTTP, and layouts of two versions to put there."""

    registry: Registry
    layouts: dict[str, Path]
    keys: Cosign | None

    @property
    def cosign(self) -> Cosign:
        assert self.keys, "the test is not marked `signs`"
        return self.keys

    @property
    def name(self) -> str:
        return f"{self.registry.host}/{REPOSITORY}"

    @property
    def reference(self) -> str:
        return f"docker://{self.name}:1"

    def put(self, version: str, name: str = f"{REPOSITORY}:1") -> None:
        self.registry.push(self.layouts[version], name, tag="latest")

    def sign(self, key: str, *, bundle: bool = False, name: str = f"{REPOSITORY}:1") -> None:
        self.cosign.sign(key, f"{self.registry.host}/{name}", bundle=bundle)

    def stop(self) -> None:
        """Nobody answers there any more."""
        self.registry.__exit__(None, None, None)


@dataclass
class Starter:
    """``hpcpod`` as a user, who reaches the registry without TLS."""

    account: Account
    env: dict[str, str] = field(default_factory=dict)

    def hpcpod(self, *words: str | Path, **more: Any) -> subprocess.CompletedProcess[str]:
        return self.account.run(["hpcpod", *map(str, words)], env=self.env, **more)

    def run(
        self, reference: str, *options: str, program: Sequence[str] = ("/bin/cat", "/etc/os-release")
    ) -> subprocess.CompletedProcess[str]:
        words = ("run", "--insecure-options=http", *options, reference, "--", *program)
        return self.hpcpod(*words)

    def version(self, reference: str, *options: str) -> str:
        """Which version starts; it must start."""
        done = self.run(reference, *options)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip().removeprefix("ID=")

    def refused(self, reference: str, *options: str, slug: str = "image-untrusted") -> str:
        """The message; nothing must start."""
        done = self.run(reference, *options)
        assert (done.returncode, done.stdout) == (125, ""), done
        lines = done.stderr.splitlines()
        assert lines[0].startswith("hpcpod: ") and lines[0].endswith(f" [{slug}]"), done.stderr
        return done.stderr

    def policy(self, *requirements: dict[str, Any], name: str = "policy.json") -> Path:
        """Write the user's own policy."""
        path = self.account.home / ".config/containers" / name
        self.write(path, json.dumps({"default": list(requirements)}))
        return path

    def write(self, path: Path, text: str) -> None:
        """Write a file of this user's, by a rename as editors do."""
        made = path.with_name(f"{path.name}.new")
        for parent in reversed([p for p in path.parents if p.is_relative_to(self.account.home)]):
            if not parent.exists():
                parent.mkdir()
                shutil.chown(parent, self.account.uid, self.account.uid)
        made.write_text(text)
        shutil.chown(made, self.account.uid, self.account.uid)
        made.rename(path)


@pytest.fixture(scope="session")
def layouts_of(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two versions of one small image."""
    base = tmp_path_factory.mktemp("versions")
    for version in ("one", "two"):
        tree = small_tree()
        tree.files["etc/os-release"] = (0o644, f"ID={version}\n".encode())
        write_layout(base / version, tree)
    return {version: base / version for version in ("one", "two")}


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Cosign:
    """Keys a and b."""
    if needs.unmet("cosign"):
        pytest.skip(str(needs.unmet("cosign")))
    cosign = Cosign(tmp_path_factory.mktemp("keys"))
    for name in ("a", "b"):
        cosign.key(name).chmod(0o644)
    return cosign


@pytest.fixture
def shelf(
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    layouts_of: dict[str, Path],
    request: pytest.FixtureRequest,
) -> Iterator[Shelf]:
    """The registry, with version one as ``a/tool:1``."""
    keys = request.getfixturevalue("keys") if request.node.get_closest_marker("signs") else None
    authority = Authority(tmp_path_factory.mktemp("authority"))
    with Registry(tmp_path / "registry", authority, tls=False) as registry:
        made = Shelf(registry, layouts_of, keys)
        made.put("one")
        yield made


@pytest.fixture
def starter(user: Account) -> Starter:
    return Starter(user)
