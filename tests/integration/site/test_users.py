# SPDX-License-Identifier: Apache-2.0
"""Many users start one image of the site's store at once: one unpacking, one mount, a pod for each."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.integration.pod.conftest import wait_for
from tests.integration.site.conftest import FIRST_USER, FORMS, Site

pytestmark = pytest.mark.needs("root", "plain", "userns", "overlay", "native", "fuse", "kernel-images")

USERS = range(FIRST_USER, FIRST_USER + 8)
PACKED = FORMS[1:]


def root_of(table: str) -> tuple[str, str]:
    """Type and device of a pod's root, from its mount table."""
    (line,) = [line for line in table.splitlines() if line.split()[4] == "/"]
    return line.partition(" - ")[2].split()[0], line.split()[2]


def ended(processes: list[subprocess.Popen[str]], words: str = "") -> list[str]:
    """Their outputs; all must have succeeded."""
    ends = [process.communicate(words or None, timeout=100) for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), [err for _, err in ends]
    return [out.strip() for out, _ in ends]


def own_images(site: Site) -> list[str]:
    """What users have unpacked for themselves."""
    return [str(path) for uid in USERS for path in site.base.glob(f"u{uid}/store*/images/*")]


@pytest.mark.parametrize("form", PACKED)
def test_eight_users_at_once(site: Site, small: str, form: str) -> None:
    """As prologs do it: eight jobs begin on the node at the same moment, and nobody had the image."""
    words = ["image", "mount", f"--rootfs={form}"]
    mounting = [site.start(*words, "--lease", f"job{uid}", small) for uid in USERS]
    places = ended(mounting)
    assert len(set(places)) == 1
    made = json.loads((site.store / "images" / site.entries()[0] / "meta.json").read_bytes())
    pods = [site.start_pod(uid, small, "sh", "-c", "cat /proc/self/mountinfo; echo .; cat") for uid in USERS]
    tables = []
    for pod in pods:
        assert pod.stdout is not None
        tables.append("".join(iter(pod.stdout.readline, ".\n")))
    kinds = {root_of(table) for table in tables}
    assert len(kinds) == 1 and next(iter(kinds))[0] == form  # all of them are the one mount
    assert len(site.mounted()) == 1 and site.servers() == []
    assert own_images(site) == []
    assert len(site.entries()) == 1
    assert sum(len(leases) for leases in site.leases().values()) == len(USERS)
    assert len(site.loops()) == (form == "squashfs")
    for uid in USERS:
        assert len(site.mounted()) == 1
        site.out("image", "umount", "--lease", f"job{uid}", "--all")
    assert site.mounted() == []
    ended(pods, "the pods live on\n")
    wait_for(lambda: site.loops() == [], "no loop device")
    site.assert_idle()
    assert json.loads((site.store / "images" / site.entries()[0] / "meta.json").read_bytes()) == made


@pytest.mark.needs("strace")
def test_one_of_many_pulls_works(site: Site, small: str) -> None:
    """strace(1) counts the packers."""
    words = ["strace", "-f", "-qq", "-e", "trace=execve", "-e", "signal=none"]
    account = site.account(0)
    command = [*words, "-o", f"{site.base}/trace", "sh", "-c", "for n in 1 2 3 4 5 6 7 8; do $0 & done; wait"]
    hpcpod = f"{sys.executable} -P -m hpcpod image mount --rootfs=erofs --lease=$n {small}"
    command[-1] = f"for n in 1 2 3 4 5 6 7 8; do {hpcpod} & done; wait"
    done = account.run(command, env=site.environment(), timeout=200)
    assert done.returncode == 0 and len(done.stdout.splitlines()) == len(USERS), done.stderr
    trace = (site.base / "trace").read_text()
    assert trace.count('mkfs.erofs", [') == 1
    site.out("image", "umount", "--lease=1", "--all")
    assert len(site.mounted()) == 1


@pytest.mark.parametrize("form", PACKED)
def test_users_of_an_image_that_is_mounted_once(site: Site, small: str, form: str) -> None:
    site.out("image", "mount", f"--rootfs={form}", small)
    pods = [site.start_pod(uid, small, "cat", "/proc/self/mountinfo") for uid in USERS]
    assert {root_of(table)[0] for table in ended(pods)} == {form}
    assert own_images(site) == [] and site.servers() == []
    site.out("image", "umount", "--all", "--lease=manual")
    site.assert_idle()


def test_users_of_a_directory(site: Site, small: str) -> None:
    site.out("image", "pull", "--site", "--rootfs=dir", small)
    pods = [site.start_pod(uid, small, "cat", "/etc/os-release") for uid in USERS]
    assert set(ended(pods)) == {"ID=tiny"}
    assert own_images(site) == []


def test_users_of_a_squashfs_that_nobody_has_mounted(site: Site, small: str) -> None:
    """Each user has one FUSE server, of the site's one file."""
    site.out("image", "pull", "--site", "--rootfs=squashfs", small)
    script = "cat /proc/self/mountinfo; echo .; cat"
    pods = [site.start_pod(uid, small, "sh", "-c", script) for uid in USERS]
    for pod in pods:
        assert pod.stdout is not None
        table = "".join(iter(pod.stdout.readline, ".\n"))
        assert root_of(table)[0].startswith("fuse"), table
    assert len(site.servers()) == len(USERS)
    assert own_images(site) == [] and site.mounted() == []
    assert "runs in it" in site.refused("image", "rm", "--site", small, slug="image-in-use")
    ended(pods, "x")
    wait_for(lambda: site.servers() == [], "no server left")
    site.out("image", "rm", "--site", small)


def test_users_of_an_erofs_that_nobody_has_mounted(site: Site, small: str) -> None:
    """Only root mounts it: users unpack the image for themselves."""
    site.out("image", "pull", "--site", "--rootfs=erofs", small)
    uid = FIRST_USER
    assert site.pod(uid, small, "cat", "/etc/os-release", check=True).stdout == "ID=tiny\n"
    (own,) = own_images(site)
    assert own.endswith(site.entries()[0].removesuffix(".erofs"))
    said = site.pod(uid, small, "true", options=["--rootfs=erofs"])
    assert said.returncode == 125 and "only root mounts erofs" in said.stderr, said.stderr


def test_a_mount_is_taken_before_all_else(site: Site, small: str) -> None:
    """There is a squashfs file as well, for FUSE, and the image in the user's own store."""
    uid = FIRST_USER
    site.out("image", "pull", small, uid=uid)
    site.out("image", "pull", "--site", "--rootfs=squashfs", small)
    site.out("image", "mount", "--rootfs=erofs", small)
    table = site.pod(uid, small, "cat", "/proc/self/mountinfo", check=True).stdout
    assert root_of(table)[0] == "erofs"
    site.out("image", "umount", "--all")
    table = site.pod(uid, small, "cat", "/proc/self/mountinfo", check=True).stdout
    assert root_of(table)[0].startswith("fuse")


def test_plans_notice_that_root_has_mounted(site: Site, small: str) -> None:
    """A user's plan for FUSE is from before; afterwards it is for FUSE again."""
    site.out("image", "pull", "--site", "--rootfs=squashfs", small)
    kinds = []
    for words in ([], ["mount"], ["umount"]):
        if words:
            site.out("image", *words, small)
        table = site.pod(FIRST_USER, small, "cat", "/proc/self/mountinfo", check=True).stdout
        kinds.append(root_of(table)[0].partition(".")[0])
    assert kinds == ["fuse", "squashfs", "fuse"]


@pytest.mark.parametrize("where", ["site", "user"])
@pytest.mark.parametrize("form", FORMS)
def test_a_form_can_be_asked_for(site: Site, small: str, where: str, form: str) -> None:
    uid = FIRST_USER
    if (where, form) == ("user", "erofs"):
        said = site.refused("image", "pull", "--rootfs=erofs", small, slug="store-unusable", uid=uid)
        assert "only root mounts erofs, from the site's store (hpcpod image mount)" in said
        return
    if where == "site":
        site.out("image", "mount", f"--rootfs={form}", small)
    else:
        site.out("image", "pull", f"--rootfs={form}", small, uid=uid)
    table = site.pod(
        uid, small, "cat", "/proc/self/mountinfo", options=[f"--rootfs={form}"], check=True
    ).stdout
    kind = root_of(table)[0]
    fuse = (where, form) == ("user", "squashfs")
    assert kind.startswith("fuse") if fuse else kind == form if form in PACKED else kind not in PACKED
    assert bool(own_images(site)) == (where == "user")
    words = ["plan", "--json", f"--rootfs={form}", small]
    root = json.loads(site.out(*words, uid=uid))["pod"]["rootfs"]
    assert root["op"] == ("FuseImage" if fuse else "Tree")
    assert set(root) == {"op", *(["file", "name", "server"] if fuse else ["path"])}
    if where == "site":
        site.out("image", "umount", "--all")
        site.assert_idle()


def test_what_the_site_prefers_is_no_order_for_users(site: Site, small: str) -> None:
    """A user cannot have erofs: something else is taken."""
    site.configure('[store]\nrootfs = "erofs"')
    assert site.pod(FIRST_USER, small, "cat", "/etc/os-release", check=True).stdout == "ID=tiny\n"
    assert len(own_images(site)) == 1
    site.configure('[store]\nrootfs = "squashfs"')
    site.out("image", "rm", small, uid=FIRST_USER)
    site.pod(FIRST_USER, small, "true", check=True)
    assert [name.endswith(".squashfs") for name in own_images(site)] == [True]
    site.out("image", "pull", "--site", small)
    assert site.entries()[0].endswith(".squashfs")


def test_removing_what_only_the_site_has(site: Site, small: str) -> None:
    digest = site.out("image", "pull", "--site", small)
    for name in (small, digest, digest[7:19]):
        said = site.refused("image", "rm", name, slug="image-not-found", uid=FIRST_USER)
        assert "hint: the site's store" in said and "image rm --site" in said
    assert len(site.entries()) == 1
