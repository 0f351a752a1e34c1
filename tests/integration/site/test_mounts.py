# SPDX-License-Identifier: Apache-2.0
"""Packed images that root mounts for all: leases are counted, and what was killed or changed is noticed."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest

from hpcpod.images.stores.account import find_account
from hpcpod.images.stores.merkle import tree_of
from hpcpod.images.stores.site import HELD_SECONDS, EntryBusy, SiteStore
from hpcpod.settings import Settings
from tests.integration.pod.conftest import wait_for
from tests.integration.site.conftest import ACCOUNT, FIRST_USER, FORMS, Site, mount_points, reseal, tiny

pytestmark = pytest.mark.needs("root", "plain", "userns", "overlay", "native", "fuse", "kernel-images")

PACKED = FORMS[1:]


def mount(site: Site, reference: str, lease: str, form: str = "auto") -> str:
    return site.out("image", "mount", f"--rootfs={form}", "--lease", lease, reference)


@pytest.mark.parametrize("form", PACKED)
def test_leases_are_counted(site: Site, form: str) -> None:
    reference = tiny(site, "one")
    place = mount(site, reference, "job1", form)
    (name,) = site.entries()
    assert place == f"{site.runtime}/mounts/{name}" and f"{place} {form}" in mount_points()
    assert mount(site, reference, "job1", form) == mount(site, reference, "job2", form) == place
    assert site.mounted() == [name] and site.leases() == {name: ["job1", "job2"]}
    assert Path(place, "one-0").read_bytes() == b"one"
    flags = subprocess.run(["findmnt", "-no", "OPTIONS", place], check=True, capture_output=True).stdout
    assert {"ro", "nosuid", "nodev"} <= set(flags.decode().strip().split(","))
    assert len(site.loops()) == (form == "squashfs")
    assert site.out("image", "umount", "--lease", "job1", reference) == ""
    assert site.out("image", "umount", "--lease", "job1", reference) == ""
    assert site.out("image", "umount", "--lease", "other", reference) == ""
    assert site.mounted() == [name]
    assert site.out("image", "umount", "--lease", "job2", reference) == name
    site.assert_idle()
    assert site.out("image", "umount", "--lease", "job2", "--all") == ""


def test_a_directory_is_leased_as_well(site: Site) -> None:
    reference = tiny(site, "one")
    place = mount(site, reference, "job1", "dir")
    assert Path(place, "one-0").read_bytes() == b"one"
    assert site.mounted() == []
    said = site.refused("image", "rm", "--site", reference, slug="image-in-use")
    assert "leased by job1" in said
    assert site.out("image", "gc", "--site", "--all") == "no image had to go"
    site.out("image", "umount", "--lease", "job1", reference)
    site.assert_idle()
    site.out("image", "rm", "--site", reference)


def test_all_of_a_lease(site: Site) -> None:
    one, two = tiny(site, "one"), tiny(site, "two")
    mount(site, one, "job1", "erofs")
    mount(site, two, "job1", "squashfs")
    mount(site, two, "job2", "squashfs")
    assert len(site.mounted()) == 2
    assert site.out("image", "umount", "--lease", "job1", "--all").endswith(".erofs")
    assert len(site.mounted()) == 1
    site.out("image", "umount", "--lease", "job2", "--all")
    site.assert_idle()


@pytest.mark.parametrize("lease", ["", ".", "..", "a/b", "../x", "-x", "a b", "a\n", "x" * 129])
def test_leases_are_plain_names(site: Site, lease: str) -> None:
    reference = tiny(site, "one")
    for words in (("umount", f"--lease={lease}", "--all"), ("umount", f"--lease={lease}", reference)):
        assert "not a name" in site.refused("image", *words, slug="usage")
    said = site.refused("image", "mount", f"--lease={lease}", reference, slug="usage")
    assert "not a name" in said
    site.assert_idle()


@pytest.mark.parametrize("words", [[], ["--all", "01234567"]])
def test_one_image_or_all(site: Site, words: list[str]) -> None:
    site.refused("image", "umount", *words, slug="usage")


@pytest.mark.parametrize("form", PACKED)
def test_a_file_that_changed_is_not_mounted(site: Site, form: str) -> None:
    reference = tiny(site, "one", data=os.urandom(50_000))
    mount(site, reference, "job1", form)
    site.out("image", "umount", "--lease", "job1", "--all")
    (name,) = site.entries()
    file = site.store / "images" / name / f"rootfs.{form}"
    with file.open("r+b") as opened:
        opened.seek(file.stat().st_size // 2)
        opened.write(b"changed")
    said = site.refused("image", "mount", "--rootfs", form, "--lease", "job2", reference, slug="image-digest")
    assert name in said and "image rm --site" in said
    site.assert_idle()
    site.out("image", "rm", "--site", reference)
    mount(site, reference, "job2", form)
    site.out("image", "umount", "--lease", "job2", "--all")


def test_a_lease_that_was_there_stays(site: Site) -> None:
    """A mount that fails takes back what it did, and no more."""
    reference = tiny(site, "one", data=os.urandom(50_000))
    place = mount(site, reference, "job1", "squashfs")
    (name,) = site.entries()
    subprocess.run(["umount", place], check=True)
    with (site.store / "images" / name / "rootfs.squashfs").open("r+b") as opened:
        opened.seek(20_000)
        opened.write(b"changed")
    for lease in ("job1", "job2"):
        site.refused("image", "mount", "--lease", lease, reference, slug="image-digest")
        assert site.leases() == {name: ["job1"]}
    assert site.out("image", "umount", "--lease", "job1", "--all") == ""
    site.assert_idle()


@pytest.mark.parametrize("form", FORMS)
def test_a_store_that_became_read_only(site: Site, form: str) -> None:
    """What is there serves on, for those who have it and those who come."""
    reference = tiny(site, "one")
    place = mount(site, reference, "job1", form)
    subprocess.run(["mount", "--bind", site.store, site.store], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", site.store], check=True)
        assert mount(site, reference, "job1", form) == mount(site, reference, "job2", form) == place
        assert Path(place, "one-0").read_bytes() == b"one"
    finally:
        subprocess.run(["umount", "-l", site.store], check=True)
    assert list(site.leases().values()) == [["job1", "job2"]]
    site.out("image", "umount", "--lease", "job1", reference)
    site.out("image", "umount", "--lease", "job2", reference)
    site.assert_idle()


@pytest.mark.parametrize("form", PACKED)
def test_a_file_that_the_kernel_cannot_mount(site: Site, form: str) -> None:
    """The digest says what it should, the file system is none: the lease goes, too."""
    reference = tiny(site, "one")
    site.out("image", "pull", "--site", f"--rootfs={form}", reference)
    (name,) = site.entries()
    entry = site.store / "images" / name
    zeros, leaves = bytes(8192), 2 * sha256(bytes(4096)).digest()
    root, tree = tree_of(leaves)
    (entry / f"rootfs.{form}").write_bytes(zeros)
    (entry / "rootfs.verity").write_bytes(tree)
    reseal(entry, root=root, length=len(zeros))
    said = site.refused("image", "mount", "--rootfs", form, "--lease", "a", reference, slug="store-unusable")
    assert f"mount of {name}: " in said
    site.assert_idle()


@pytest.mark.parametrize("form", PACKED)
def test_pods_outlive_the_unmounting_and_keep_the_image(site: Site, small: str, form: str) -> None:
    mount(site, small, "job1", form)
    (name,) = site.entries()
    with site.running(FIRST_USER, small, options=["--no-home"]):
        site.out("image", "umount", "--lease", "job1", "--all")
        assert site.mounted() == [] and site.leases() == {}
        said = site.refused("image", "rm", "--site", small, slug="image-in-use")
        assert "runs in it" in said
        kept = site.hpcpod("image", "gc", "--site", "--all")
        assert (kept.returncode, kept.stdout) == (0, "no image had to go\n")
        assert f"kept {name[:19].replace('-', ':')}: process " in kept.stderr
    wait_for(lambda: site.loops() == [], "no loop device")
    site.out("image", "rm", "--site", small)
    assert site.entries() == []


@pytest.mark.parametrize("options", [[], ["--writable"]], ids=["bind", "overlay"])
@pytest.mark.parametrize("form", FORMS)
def test_what_a_pod_runs_from_is_not_collected(site: Site, small: str, form: str, options: list[str]) -> None:
    mount(site, small, "job1", form)
    with site.running(FIRST_USER, small, options=options):
        site.out("image", "umount", "--lease", "job1", "--all")
        assert site.out("image", "gc", "--site", "--all") == "no image had to go"
    site.out("image", "gc", "--site", "--all")
    assert site.entries() == []
    site.assert_idle()


def test_collection_unmounts_what_nobody_asks_for(site: Site) -> None:
    """As a killed mount leaves it: mounted, without a lease."""
    reference = tiny(site, "one")
    place = mount(site, reference, "job1", "squashfs")
    Path(site.runtime, "leases", Path(place).name, "job1").unlink()
    (site.runtime / "leases" / site.entries()[0].replace("squashfs", "erofs")).mkdir()
    assert site.out("image", "gc", "--site") == "no image had to go; removed 1 leftover"
    site.assert_idle()
    assert list((site.runtime / "leases").iterdir()) == []


def test_nobody_waits_for_an_entry_that_is_not_theirs(site: Site) -> None:
    """As while another process compares a large file: its lock is taken, its lease is there."""
    one, two = tiny(site, "one"), tiny(site, "two")
    mount(site, one, "job1", "erofs")
    (name,) = site.entries()
    Path(site.runtime, "leases", name, "job1").rename(Path(site.runtime, "leases", name, "job2"))
    lock = os.open(site.runtime / "locks" / f"entry-{name}", os.O_RDWR)
    fcntl.flock(lock, fcntl.LOCK_EX)
    soon = HELD_SECONDS - 5  # s, less than anybody waits for an entry of its own
    try:
        mount(site, two, "job1", "squashfs")
        site.out("image", "umount", "--lease", "job1", "--all", timeout=soon)
        site.out("image", "gc", "--site", "--all", timeout=soon)
        assert site.entries() == site.mounted() == [name]
        settings = Settings(site=str(site.store), site_run=str(site.runtime))
        store = SiteStore(settings, find_account(str(ACCOUNT)))
        with pytest.raises(EntryBusy, match="another process mounts, unmounts"), store.held(name, 0.1):
            pass
    finally:
        os.close(lock)
    assert site.out("image", "umount", "--lease", "job2", "--all") == name
    site.assert_idle()


def test_nothing_is_kept_of_images_that_have_gone(site: Site) -> None:
    mount(site, tiny(site, "one"), "a", "squashfs")
    mount(site, tiny(site, "two"), "b", "erofs")
    verified = site.runtime / "verified"
    names = sorted(os.listdir(verified))
    assert names == site.entries()
    (verified / f"{names[0]}.4711").write_text("")
    site.out("image", "umount", "--lease=a", "--all")
    site.out("image", "gc", "--site", "--all")
    site.out("image", "gc", "--site")
    assert os.listdir(verified) == site.entries() == site.mounted()


def nested(path: Path) -> None:
    path.write_text("[" * 500_000)


def link_to_pipe(path: Path) -> None:
    os.mkfifo(path.with_name("pipe"))
    path.symlink_to("pipe")


@pytest.mark.parametrize("make", [os.mkfifo, link_to_pipe, nested, Path.mkdir])
def test_garbage_of_the_account_holds_nobody_up(site: Site, make: Callable[[Path], None]) -> None:
    """What it made, and a killed command had moved away already, before looking at it."""
    site.out("image", "gc", "--site")
    ended = subprocess.run(
        [sys.executable, "-P", "-c", "from hpcpod.images.stores import embryo; print(embryo.unique_name())"],
        env=site.environment(),
        check=True,
        capture_output=True,
        text=True,
    )
    entry = site.store / "garbage" / ended.stdout.strip()
    entry.mkdir()
    make(entry / "meta.json")
    for path in (entry, *entry.iterdir()):
        os.chown(path, ACCOUNT, ACCOUNT, follow_symlinks=False)
    assert site.out("image", "gc", "--site", timeout=60) == "no image had to go; removed 1 leftover"
    site.assert_idle()


@pytest.mark.parametrize("form", FORMS)
def test_why_says_how_users_get_at_it(site: Site, form: str) -> None:
    def said() -> dict[str, str]:
        facts = json.loads(site.out("image", "why", "--json", reference, uid=FIRST_USER))
        return {fact["store"].partition(" ")[0]: fact for fact in facts}["site"]

    reference = tiny(site, "one")
    site.out("image", "gc", "--site")  # makes the store
    absent = said()
    assert (absent["stored"], absent["form"]) == ("no", "erofs: one mount of the kernel serves all users")
    assert absent["how"] == "root puts images there (image pull --site)"
    assert "kernel erofs" in absent["node"] and "mksquashfs" in absent["node"]
    site.out("image", "pull", "--site", f"--rootfs={form}", reference)
    before = said()
    place = mount(site, reference, "job1", form)
    after = said()
    assert before["form"] == f"{form}: asked for, when it was made" and after["kept"] == "leased by job1"
    how = {"dir": "needs no mount", "squashfs": "users' runs show it by FUSE", "erofs": "a copy of their own"}
    assert how[form] in before["mounted"]
    assert after["mounted"] == ("needs no mount" if form == "dir" else place)
    assert (before["collected"], after["collected"]) == ("number 1 of 1", "never")


def test_collection_keeps_what_a_job_has_leased(site: Site) -> None:
    reference = tiny(site, "one")
    place = mount(site, reference, "job1")
    assert site.out("image", "gc", "--site", "--all") == "no image had to go"
    assert Path(place, "one-0").exists()
    assert "leased by job1" in site.refused("image", "rm", "--site", reference, slug="image-in-use")


def test_after_a_reboot(site: Site) -> None:
    """RUN is gone, the store is there; the next mount makes what is needed."""
    reference = tiny(site, "one")
    place = mount(site, reference, "job1")
    subprocess.run(["umount", place], check=True)
    subprocess.run(["rm", "-r", site.runtime], check=True)
    assert mount(site, reference, "job2") == place
    assert site.leases() == {Path(place).name: ["job2"]}


@pytest.mark.parametrize("there", [False, True], ids=["absent", "there"])
def test_a_run_time_directory_on_a_disk(site: Site, there: bool) -> None:
    """What is in it would outlive a boot, mounts do not."""
    reference, run = tiny(site, "one"), site.base / "run" / "site"
    site.out("image", "gc", "--site")
    site.configure(run=str(run))
    if there:
        run.mkdir(parents=True)
    for words in (["mount", reference], ["pull", "--site", reference], ["gc", "--site"]):
        said = site.refused("image", *words, slug="store-unusable")
        assert f"run-time directory {run}: on " in said and "[site] run in hpcpod.toml" in said
    assert os.listdir(run) == site.entries() == []
    if not there:
        run.rmdir()
    found = findings_of_doctor(site)
    assert found["site store"]["level"] == "ok"
    assert found["site run-time directory"]["level"] == "fail"
    assert f"{run} is on " in found["site run-time directory"]["message"]
    site.configure()
    assert "site run-time directory" not in findings_of_doctor(site)


def findings_of_doctor(site: Site) -> dict[str, dict[str, str]]:
    done = site.hpcpod("doctor", "--json", uid=FIRST_USER)
    return {found["subject"]: found for found in json.loads(done.stdout)["findings"]}


def test_mounts_and_removals_at_once(site: Site) -> None:
    """Each mount ends with the image mounted, whatever a removal beside it was faster with."""
    reference = tiny(site, "one")
    for round_number in range(4):
        site.out("image", "pull", "--site", reference)
        mounting = [site.start("image", "mount", "--lease", f"a{n}", reference) for n in range(2)]
        removing = site.start("image", "gc", "--site", "--all")
        ends = [process.communicate(timeout=60) for process in (*mounting, removing)]
        assert [process.returncode for process in (*mounting, removing)] == [0, 0, 0], (round_number, ends)
        assert len(site.mounted()) == 1 and len(site.entries()) == 1
        assert list(site.leases().values()) == [["a0", "a1"]]
        for number in range(2):
            site.out("image", "umount", "--lease", f"a{number}", "--all")
        site.assert_idle()
