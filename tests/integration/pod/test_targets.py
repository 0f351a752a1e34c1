# SPDX-License-Identifier: Apache-2.0
"""Images that lay traps where something is mounted: all stays inside, and nothing of the node changes."""

from __future__ import annotations

import copy
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.integration.pod.conftest import Pods
from tests.integration.pod.image import Tree, write_layout

TARGETS = ("dev", "proc", "tmp", "etc/passwd", "etc/resolv.conf", "mnt")
"""Where pods mount something, and where these tests bind something."""

KINDS = (
    "absolute link",
    "relative link",
    "link to root",
    "dangling link",
    "loop",
    "file",
    "directory",
    "fifo",
    "absent",
)


@pytest.fixture
def canary() -> Iterator[Path]:
    """A tree of the node that no pod mounts by itself: what an escaping link points at."""
    path = Path(f"/opt/hpcpod-test-canary-{os.getpid()}")
    (path / "directory").mkdir(parents=True)
    (path / "file").write_text("canary\n")
    for made in (path, path / "directory", path / "file"):
        made.chmod(0o777)
    yield path
    shutil.rmtree(path)


def snapshot(path: Path) -> list[tuple[str, int, int, int, bytes]]:
    found = []
    for entry in sorted([path, *path.rglob("*")]):
        status = entry.lstat()
        content = entry.read_bytes() if entry.is_file() else b""
        found.append((str(entry), status.st_mode, status.st_uid, status.st_nlink, content))
    return found


def trapped(tree: Tree, target: str, kind: str, canary: Path) -> Tree:
    """The tree with a trap at target."""
    is_file = target.startswith("etc/")
    aim = canary / ("file" if is_file else "directory")
    changed = copy.deepcopy(tree).without(target, f"{target}/x")
    match kind:
        case "absolute link":
            changed.links[target] = str(aim)
        case "relative link":
            changed.links[target] = "../" * 12 + str(aim).lstrip("/")
        case "link to root":
            changed.links[target] = "/"
        case "dangling link":
            changed.links[target] = "/none/such"
        case "loop":
            changed.links[target] = "/" + target
        case "file":
            changed.files[target] = (0o644, b"of the image\n")
        case "directory":
            changed.directories[target] = 0o755
        case "fifo":
            changed.fifos.append(target)
    return changed


@pytest.mark.needs("plain", "userns", "native", "overlay", "root")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("target", TARGETS)
def test_a_trap_at_a_mount_target(
    plain_pods: Pods, layouts: Path, tree: Tree, canary: Path, target: str, kind: str
) -> None:
    name = hashlib.sha256(f"{target} {kind}".encode()).hexdigest()[:16]
    reference = write_layout(layouts / name, trapped(bare(tree), target, kind, canary), env={"PATH": "/bin"})
    before, mounts = snapshot(canary), Path("/proc/self/mountinfo").read_text()
    hosts = Path("/etc/hosts").read_bytes(), Path("/etc/passwd").read_bytes()
    options = ["--no-home", "-B", "/usr/share:/mnt"] if target == "mnt" else ["--no-home"]
    script = "echo escaped 2>/dev/null >/mnt/escaped; echo ran"
    try:
        store = {"HPCPOD_STORE": str(plain_pods.account.store)}
        done = plain_pods.run("sh", "-c", script, options=options, reference=reference, cwd="/", env=store)
        assert done.returncode in (0, 2, 125), done
        if done.returncode == 125:
            assert done.stderr.startswith("hpcpod: ") and "\nTraceback" not in done.stderr
        else:
            assert done.stdout == "ran\n"
    finally:
        shutil.rmtree(layouts / name)
    assert snapshot(canary) == before
    assert Path("/proc/self/mountinfo").read_text() == mounts
    assert (Path("/etc/hosts").read_bytes(), Path("/etc/passwd").read_bytes()) == hosts


def bare(tree: Tree) -> Tree:
    """The small image with no more programs than these tests use: it is unpacked for each of them."""
    changed = copy.deepcopy(tree)
    unused = [name for name in changed.files if name.startswith("bin/") and name not in ("bin/sh", "bin/cat")]
    return changed.without(*unused)


@pytest.fixture
def image(layouts: Path, tree: Tree, request: pytest.FixtureRequest) -> Iterator[Callable[..., str]]:
    """``image(change)``: the reference of a small image after this change."""
    path = layouts / "changed"

    def make(change: Callable[[Tree], None]) -> str:
        changed = bare(tree)
        change(changed)
        return write_layout(path, changed, env={"PATH": "/bin"})

    yield make
    shutil.rmtree(path, ignore_errors=True)


def test_links_that_image_makers_use_are_followed_inside(pods: Pods, image: Callable[..., str]) -> None:
    """/var/tmp -> /tmp, /etc/resolv.conf -> ../run/…, /home -> /var/home: common, and no escape."""

    def change(tree: Tree) -> None:
        del tree.directories["var/tmp"], tree.files["etc/resolv.conf"]
        tree.links |= {"var/tmp": "/tmp", "etc/resolv.conf": "../run/systemd/resolve/stub-resolv.conf"}
        tree.directories |= {"run/systemd": 0o755, "run/systemd/resolve": 0o755}
        tree.files["run/systemd/resolve/stub-resolv.conf"] = (0o644, b"# image\n")
        tree.links["data"] = "srv/real"
        tree.directories["srv/real"] = 0o755

    (pods.account.home / "file").write_text("bound\n")
    options = ["-B", f"{pods.account.home}:/data"]
    script = "cat /etc/resolv.conf /srv/real/file"
    expected = Path("/etc/resolv.conf").read_text() + "bound\n"
    assert pods.out("sh", "-c", script, options=options, reference=image(change), cwd="/") + "\n" == expected


@pytest.mark.needs("overlay")
def test_a_mount_point_behind_a_link_is_made_where_it_leads(pods: Pods, image: Callable[..., str]) -> None:
    def change(tree: Tree) -> None:
        tree.links["data"] = "/srv"

    (pods.account.home / "file").write_text("bound\n")
    options = ["-B", f"{pods.account.home}:/data/a/b"]
    assert pods.out("cat", "/srv/a/b/file", options=options, reference=image(change), cwd="/") == "bound"


@pytest.mark.needs("overlay")
def test_an_image_of_nothing_but_a_program(pods: Pods, image: Callable[..., str]) -> None:
    def change(tree: Tree) -> None:
        tree.directories.clear()
        for name in ("etc/passwd", "etc/group", "etc/hosts", "etc/resolv.conf", "etc/os-release"):
            del tree.files[name]

    script = "cat /etc/passwd /proc/self/mounts >/dev/null; echo >/dev/null && cd /tmp && cat /etc/hosts"
    assert pods.run("sh", "-c", script, reference=image(change), cwd="/").returncode == 0


@pytest.mark.needs("overlay")
def test_directories_that_are_closed_in_the_image(pods: Pods, image: Callable[..., str]) -> None:
    """Modes of the image hold for the directories on the way to a mount point that is made."""

    def change(tree: Tree) -> None:
        tree.directories |= {"locked": 0o500, "locked/in": 0o555}

    options = ["-B", "/usr/share:/locked/in/made"]
    assert (
        pods.run("sh", "-c", "cd /locked/in/made", options=options, reference=image(change)).returncode == 0
    )
