# SPDX-License-Identifier: Apache-2.0
"""Files and trees that are one image are read again when they have changed, and not else."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from tests.conftest import Account
from tests.integration.admission.conftest import Starter
from tests.integration.pod.image import small_tree, write_layout

pytestmark = pytest.mark.needs("native", "userns")

OLD = time.time() - 3600


@pytest.fixture
def tree(user: Account) -> Path:
    """A small system in a directory, as debootstrap leaves one."""
    path, small = user.home / "tree", small_tree()
    for name, mode in small.directories.items():
        (path / name).mkdir(parents=True, exist_ok=True)
        (path / name).chmod(mode)
    for name, (mode, content) in small.files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
        (path / name).chmod(mode)
    (path / "etc/os-release").write_text("ID=one\n")
    shutil.chown(path, user.uid, user.uid)
    subprocess.run(["chown", "-R", f"{user.uid}:{user.uid}", str(path)], check=True)
    return path


def images(account: Account) -> list[str]:
    return sorted(os.listdir(account.store / "images"))


def test_a_tree_starts_as_it_is_now(starter: Starter, tree: Path) -> None:
    reference = f"dir:{tree}"
    assert starter.version(reference) == "one"
    assert starter.version(reference) == "one"
    for version in ("two", "one", "six"):
        (tree / "etc/os-release").write_text(f"ID={version}\n")
        assert starter.version(reference) == version
    assert len(images(starter.account)) == 3


def settle() -> None:
    """Let the times of a file be old enough to tell a later change."""
    time.sleep(2.1)


@pytest.mark.needs("strace")
def test_a_tree_that_has_not_changed_is_not_read(starter: Starter, tree: Path) -> None:
    reference = f"dir:{tree}"
    settle()
    assert starter.version(reference) == "one"
    trace = starter.account.home / "trace"
    words = [
        "strace",
        "-f",
        "-e",
        "trace=openat",
        "-o",
        str(trace),
        "hpcpod",
        "run",
        reference,
        "--",
        "/bin/true",
    ]
    assert starter.account.run(words).returncode == 0
    assert "os-release" not in trace.read_text()
    assert len(images(starter.account)) == 1


@pytest.mark.needs("squashfs-tools", "strace")
def test_a_file_is_hashed_once(starter: Starter, tree: Path) -> None:
    path = starter.account.home / "image.sqsh"
    subprocess.run(["mksquashfs", str(tree), str(path), "-quiet", "-no-progress"], check=True)
    path.chmod(0o644)
    settle()
    reference = f"sqsh:{path}"
    assert starter.version(reference) == "one"
    trace = starter.account.home / "trace"
    words = [
        "strace",
        "-f",
        "-P",
        str(path),
        "-e",
        "trace=pread64",
        "-o",
        str(trace),
        "hpcpod",
        "run",
        "--env=A=1",
    ]
    assert starter.account.run([*words, reference, "--", "/bin/true"]).returncode == 0
    assert "pread64" not in trace.read_text()
    (tree / "etc/os-release").write_text("ID=two\n")
    path.unlink()
    subprocess.run(["mksquashfs", str(tree), str(path), "-quiet", "-no-progress"], check=True)
    assert starter.version(reference) == "two"
    # Gone from the store it is read again, whatever is remembered.
    settle()
    assert starter.version(reference, "--env=A=2") == "two"
    starter.hpcpod("image", "gc", "--all")
    assert starter.version(reference, "--env=A=3") == "two"


def pinned(starter: Starter, reference: str) -> str:
    done = starter.hpcpod("image", "pull", "--insecure-options=signature", reference)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("transport", ["dir", "sqsh"])
@pytest.mark.needs("squashfs-tools")
def test_a_pin_is_no_reason_to_believe_it(starter: Starter, tree: Path, transport: str) -> None:
    """A forbidden image does not run under the name of a permitted place."""
    home = starter.account.home
    (home / "ok").mkdir()
    (home / "ok/tree").mkdir()
    (home / "ok/file").write_text("no squashfs")
    permitted, forbidden = home / "ok/tree", tree
    if transport == "sqsh":
        permitted, forbidden = home / "ok/file", home / "image.sqsh"
        subprocess.run(["mksquashfs", str(tree), str(forbidden), "-quiet", "-no-progress"], check=True)
    digest = pinned(starter, f"{transport}:{forbidden}")
    scopes = {str(home / "ok"): [{"type": "insecureAcceptAnything"}]}
    text = json.dumps({"default": [{"type": "reject"}], "transports": {transport: scopes}})
    starter.write(home / ".config/containers/policy.json", text)
    starter.refused(f"{transport}:{forbidden}@{digest}")
    starter.refused(f"{transport}:{permitted}@{digest}", slug="image-digest")
    settle()
    starter.refused(f"{transport}:{permitted}@{digest}", slug="image-digest")


def test_a_right_pin_starts(starter: Starter, tree: Path) -> None:
    reference = f"dir:{tree}"
    digest = pinned(starter, reference)
    assert starter.version(f"{reference}@{digest}") == "one"
    (tree / "etc/os-release").write_text("ID=two\n")
    starter.refused(f"{reference}@{digest}", slug="image-digest")


def test_a_policy_of_another_configuration_directory_counts(starter: Starter, tree: Path) -> None:
    """XDG_CONFIG_HOME says where the user's trust directory is; a plan made without it does not do."""
    digest = pinned(starter, f"dir:{tree}")
    assert starter.version(f"dir:{tree}@{digest}") == "one"
    reference = f"oci:{starter.account.home}/layout:latest"
    write_layout(starter.account.home / "layout", small_tree())
    assert starter.run(reference).returncode == 0
    other = starter.account.home / "other"
    (other / "hpcpod/trust/rules").mkdir(parents=True)
    (other / "hpcpod/trust/rules/bad.json").write_text("{}")
    starter.env["XDG_CONFIG_HOME"] = str(other)
    starter.refused(reference, slug="trust-unusable")
