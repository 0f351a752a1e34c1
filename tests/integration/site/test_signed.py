# SPDX-License-Identifier: Apache-2.0
"""The site's store takes what the site's policy accepts, and nothing where nobody has decided."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.site.conftest import ACCOUNT, FIRST_USER, Site, tiny
from tests.testbed.authority import Authority
from tests.testbed.registry import Registry
from tests.testbed.signing import Cosign

pytestmark = pytest.mark.needs("root", "userns", "native")

ACCEPT = {"type": "insecureAcceptAnything"}


def trusting(site: Site, text: str) -> None:
    """The site with this table [trust]."""
    site.configure(f"[trust]\ndirectory = {json.dumps(str(site.base / 'trust'))}\n{text}")


@pytest.mark.parametrize("command", [("pull", "--site"), ("mount",)])
def test_what_nobody_has_signed_is_refused(site: Site, small: str, command: tuple[str, ...]) -> None:
    site.policy({"type": "reject"})
    trusting(site, f'policy = "{site.base}/policy.json"')
    message = site.refused("image", *command, small, slug="image-untrusted")
    assert "policy.json" in message and "sha256:" in message
    assert site.entries() == []
    site.assert_idle()


@pytest.mark.skipif(os.path.exists("/etc/hpcpod/policy.json"), reason="this machine has a policy of its own")
def test_without_a_policy_nothing_comes_in(site: Site, small: str) -> None:
    """Where Podman is installed /etc/containers/policy.json accepts all; that is nobody's decision."""
    trusting(site, "")
    message = site.refused("image", "pull", "--site", small, slug="image-untrusted")
    assert "hpcpod trust add" in message
    # Root may let one in by name of the check.
    assert site.out("image", "pull", "--site", "--insecure-options=signature", small)
    # A user's own store is the user's business.
    assert site.pod(FIRST_USER, tiny(site, "own"), "/none").returncode == 127


def test_a_path_can_be_accepted(site: Site, small: str) -> None:
    place = Path(small.split(":")[1]).resolve()
    path = site.base / "policy.json"
    scopes = {str(place.parent): [ACCEPT]}
    path.write_text(json.dumps({"default": [{"type": "reject"}], "transports": {"oci": scopes}}))
    trusting(site, f'policy = "{path}"')
    assert site.out("image", "pull", "--site", small).startswith("sha256:")
    site.refused("image", "pull", "--site", tiny(site, "other"), slug="image-untrusted")


def test_users_are_bound_by_the_site(site: Site, small: str) -> None:
    site.out("image", "pull", "--site", "--rootfs=dir", small)
    assert site.pod(FIRST_USER, small, "true").returncode == 0
    site.policy({"type": "reject"})
    for options in ((), ("--insecure-options=signature",), ("--env=A=1",)):
        done = site.pod(FIRST_USER, small, "true", options=options)
        assert done.returncode == 125 and "[image-untrusted]" in done.stderr
    site.policy(ACCEPT)
    assert site.pod(FIRST_USER, small, "true").returncode == 0


# --------------------------------------------------------------------------- from a registry, signed


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    (tmp_path / "authority").mkdir()
    with Registry(tmp_path / "registry", Authority(tmp_path / "authority"), tls=False) as made:
        yield made


@pytest.mark.needs("registry", "cosign")
def test_signed_images_come_from_a_registry(
    site: Site, small: str, registry: Registry, tmp_path: Path
) -> None:
    registry.push(Path(small.split(":")[1]), "a/tool:1", tag="latest")
    reference = f"docker://{registry.host}/a/tool:1"
    (tmp_path / "keys").mkdir()
    cosign = Cosign(tmp_path / "keys")
    trusting(site, "")
    site.out("trust", "add", "--yes", "--prefix", registry.host, cosign.key("site"))
    pull = ("image", "pull", "--site", "--insecure-options=http")
    assert "no signature" in site.refused(*pull, reference, slug="image-untrusted")
    cosign.sign("site", f"{registry.host}/a/tool:1", bundle=True)
    digest = site.out(*pull, reference)
    (name,) = (site.store / "names").iterdir()
    status = name.stat()
    assert (status.st_uid, stat.S_IMODE(status.st_mode)) == (0, 0o644)
    assert json.loads(name.read_text())["digest"] == digest
    registry.__exit__(None, None, None)
    # No user needs the registry, nor does root.
    assert site.out("image", "mount", "--lease", "job-1", "--insecure-options=http", reference)
    assert site.pod(FIRST_USER, reference, "true").returncode == 0
    assert site.pod(FIRST_USER, reference, "true", options=["--pull=never"]).returncode == 0
    site.out("image", "umount", "--all", "--lease", "job-1")
    assert [path for path in (site.store / "tmp").rglob("*") if path.is_file()] == []


@pytest.mark.needs("registry")
def test_the_account_asks_registries_not_root(site: Site, small: str, registry: Registry) -> None:
    """Root's credentials and configuration are not the account's to read."""
    registry.push(Path(small.split(":")[1]), "a/tool:1", tag="latest")
    home = site.account(0).home
    (home / ".config/containers").mkdir(parents=True)
    (home / ".config/containers/registries.conf").write_text("this is no TOML")
    pull = ("image", "pull", "--site", "--insecure-options=http", f"docker://{registry.host}/a/tool:1")
    assert site.out(*pull).startswith("sha256:")
    assert (site.store / "tmp").stat().st_uid == ACCOUNT
