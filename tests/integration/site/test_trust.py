# SPDX-License-Identifier: Apache-2.0
"""What one user does to the site's store can never be what another one runs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.site.conftest import FIRST_USER, FORMS, Site, tiny

pytestmark = pytest.mark.needs("root", "plain", "userns", "overlay", "native", "fuse", "kernel-images")

ALICE, BOB = FIRST_USER, FIRST_USER + 1


def by_alice(path: Path) -> None:
    os.chown(path, ALICE, ALICE, follow_symlinks=False)


def a_file(path: Path) -> None:
    path.write_text("")
    by_alice(path)


def a_directory(path: Path) -> None:
    path.mkdir()
    by_alice(path)


def a_directory_for_all(path: Path) -> None:
    path.mkdir()
    path.chmod(0o777)
    by_alice(path)


def a_link(path: Path) -> None:
    target = path.parent / "alices"
    target.mkdir(exist_ok=True)
    by_alice(target)
    path.symlink_to(target)
    by_alice(path)


def a_dangling_link(path: Path) -> None:
    path.symlink_to(path.parent / "nowhere")
    by_alice(path)


def a_link_to_roots(path: Path) -> None:
    path.symlink_to("/usr")
    by_alice(path)


MADE_BEFORE = [a_file, a_directory, a_directory_for_all, a_link, a_dangling_link, a_link_to_roots]


@pytest.mark.parametrize("what", ["store", "run"])
@pytest.mark.parametrize("make", MADE_BEFORE)
def test_places_that_alice_made_first(
    site: Site, small: str, what: str, make: Callable[[Path], None]
) -> None:
    """Root does not use them, and users pass them over."""
    for place in (site.base / "open", site.memory / "open"):
        place.mkdir()
        place.chmod(0o1777)
    store, run = site.base / "open" / "site", site.memory / "open" / "site"
    site.configure(store=str(store), run=str(run))
    path = {"store": store, "run": run}[what]
    make(path)
    before = path.lstat()
    said = site.refused("image", "pull", "--site", small, slug="store-unusable")
    assert str(path) in said
    site.refused("image", "mount", small, slug="store-unusable")
    assert (path.lstat().st_mode, path.lstat().st_uid) == (before.st_mode, before.st_uid)
    assert site.pod(BOB, small, "cat", "/etc/os-release", check=True).stdout == "ID=tiny\n"
    assert len(list(site.base.glob(f"u{BOB}/store/images/*"))) == 1


def copied(site: Site, entry: Path, to: Path) -> None:
    """Alice's copy of an entry of the store, with a shell of her own in it."""
    subprocess.run(["cp", "-a", entry, to], check=True)
    (to / "rootfs" / "etc" / "os-release").write_text("ID=alice\n")
    subprocess.run(["chown", "-R", f"{ALICE}:{ALICE}", to.parent], check=True)


def test_a_store_that_alice_filled(site: Site, small: str) -> None:
    """It looks as the site's should; it is hers."""
    store = site.base / "open" / "site"
    store.parent.mkdir()
    store.parent.chmod(0o1777)
    site.out("image", "pull", "--site", "--rootfs=dir", small)
    (entry,) = (site.store / "images").iterdir()
    (store / "images").mkdir(parents=True)
    copied(site, entry, store / "images" / entry.name)
    (store / "version").write_text("1\n")
    subprocess.run(["chown", "-R", f"{ALICE}:{ALICE}", store], check=True)
    site.configure(store=str(store))
    assert site.pod(BOB, small, "cat", "/etc/os-release", check=True).stdout == "ID=tiny\n"
    os.chown(store, 0, 0)  # its images are still hers
    assert site.pod(BOB, small, "cat", "/etc/os-release", check=True).stdout == "ID=tiny\n"


@pytest.mark.parametrize("how", ["directory", "link", "roots"])
def test_mount_points_that_alice_made(site: Site, small: str, how: str) -> None:
    """Something else than the image would be at the place where root mounts it."""
    memory = site.memory / "open"
    memory.mkdir()
    memory.chmod(0o1777)
    site.configure(run=str(memory / "run"))
    site.out("image", "pull", "--site", "--rootfs=erofs", small)
    site.out("image", "pull", "--site", "--rootfs=dir", small, env={"HPCPOD_CONFIG": str(other(site))})
    (name,) = [name for name in site.entries() if name.endswith(".erofs")]
    subprocess.run(["rm", "-r", memory / "run"], check=True)
    mine = site.base / "alices"
    mine.mkdir()
    copied(site, next((site.base / "other" / "images").iterdir()), mine / "x")
    place = memory / "run" / "mounts"
    if how == "roots":  # what of it is root's does not make it root's
        place.mkdir(parents=True)
        os.chown(memory / "run", ALICE, ALICE)
    elif how == "link":
        (memory / "run").mkdir()
        (mine / "mounts").mkdir()
        place.symlink_to(mine / "mounts")
        place = mine / "mounts"
        subprocess.run(["chown", "-hR", f"{ALICE}:{ALICE}", memory / "run", mine], check=True)
    else:
        place.mkdir(parents=True)
        subprocess.run(["chown", "-R", f"{ALICE}:{ALICE}", memory / "run"], check=True)
    (place / name).symlink_to(mine / "x" / "rootfs")  # on another file system than its parent
    assert site.pod(BOB, small, "cat", "/etc/os-release", check=True).stdout == "ID=tiny\n"


def other(site: Site) -> Path:
    """Another configuration, of a store beside ours."""
    path = site.base / "other.toml"
    path.write_text(site.config.read_text().replace(f"{site.store}", f"{site.base}/other"))
    return path


def test_users_cannot_write_what_is_in_the_store(site: Site, small: str) -> None:
    """Not even /tmp of an image, which all may write in a pod."""
    site.out("image", "pull", "--site", "--rootfs=dir", small)
    script = f"find {site.base}/site {site.runtime} -writable ! -type l 2>/dev/null"
    assert site.account(ALICE).run(["sh", "-c", script]).stdout == ""
    account = site.account(65433)
    found = account.run(["sh", "-c", f"{script} | grep -v '^{site.store}/tmp'"]).stdout
    assert found == ""


@pytest.mark.parametrize("form", FORMS)
def test_a_configuration_of_somebody_else(site: Site, small: str, form: str) -> None:
    """Root and other users do not take alice's word for where the store is."""
    own = site.base / f"u{ALICE}" / "hpcpod.toml"
    site.account(ALICE)
    own.write_text(site.config.read_text())
    by_alice(own)
    env = {"HPCPOD_CONFIG": str(own)}
    for uid in (0, BOB):
        said = site.refused("image", "pull", f"--rootfs={form}", small, slug="usage", uid=uid, env=env)
        assert f"configuration {own}: owner {ALICE}, mode 0644: others could change it" in said
        words = site.pod_words(small, ["true"])
        done = site.account(uid).run(words, env={**site.environment(), **env})
        assert done.returncode == 125 and "others could change it" in done.stderr
    assert site.hpcpod("image", "list", uid=ALICE, env=env).returncode == 0


def test_a_tampered_squashfs_is_not_shown_by_fuse(site: Site, small: str) -> None:
    site.out("image", "pull", "--site", "--rootfs=squashfs", small)
    (file,) = (site.store / "images").glob("*/rootfs.squashfs")
    with file.open("r+b") as opened:
        opened.seek(file.stat().st_size // 2)
        opened.write(b"changed")
    done = site.pod(BOB, small, "true")
    assert done.returncode == 125 and "[image-digest]" in done.stderr


def test_a_version_that_this_program_does_not_know(site: Site, small: str) -> None:
    """Root is told; users have their own store."""
    site.out("image", "pull", "--site", small)
    (site.store / "version").write_text("99\n")
    site.refused("image", "pull", "--site", small, slug="store-unusable")
    assert site.pod(BOB, small, "cat", "/etc/os-release", check=True).stdout == "ID=tiny\n"


def test_a_read_only_disk(site: Site, small: str) -> None:
    """What is there can be used; what is not gives one line."""
    reference = tiny(site, "one")
    site.out("image", "pull", "--site", "--rootfs=dir", small)
    two = tiny(site, "two")
    site.out("image", "pull", two, uid=ALICE)
    inner = site.pod_words(small, ["cat", "/etc/os-release"])
    python = [sys.executable, "-P", "-m", "hpcpod"]
    plain = f"setpriv --reuid={ALICE} --regid={ALICE} --clear-groups"
    script = f"""
        mount --bind {site.base} {site.base} && mount -o remount,bind,ro {site.base} || exit 99
        {plain} {" ".join(inner)} || exit 98
        {plain} {" ".join(python)} image pull {reference} && exit 97
        {" ".join(python)} image pull --site {reference} && exit 96
        {plain} {" ".join(python)} image gc || exit 95
        {plain} {" ".join(python)} image df || exit 94
        {plain} {" ".join(python)} image rm {two} && exit 93
        exit 0
    """
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script],
        env=site.account(ALICE).environment(site.environment()),
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
    )
    assert done.returncode == 0, done
    lines = done.stderr.splitlines()
    assert len([line for line in lines if not line.startswith("hint: ")]) == 3, done.stderr
    assert all("read-only file system" in line for line in lines if line.startswith("hpcpod: ")), done.stderr
