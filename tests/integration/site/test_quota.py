# SPDX-License-Identifier: Apache-2.0
"""Quota and watermarks of both stores: the least recently used go, what is pinned or in use never."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.site.conftest import FIRST_USER, Site, tiny

pytestmark = pytest.mark.needs("root", "plain", "userns", "overlay", "native", "fuse", "kernel-images")

ALICE = FIRST_USER
MEGABYTE = 1 << 20
IMAGE = 2 * MEGABYTE
"""Of incompressible bytes: about as large in every form."""


class Kept:
    """One of the two stores under a quota: its images by name, and commands on it."""

    def __init__(self, site: Site, kind: str) -> None:
        self.site = site
        self.uid = 0 if kind == "site" else ALICE
        self.option = ["--site"] if kind == "site" else []
        self.kind = kind
        self.references: dict[str, str] = {}
        self.digests: dict[str, str] = {}

    @property
    def images(self) -> Path:
        base = self.site.store if self.kind == "site" else self.site.account(ALICE).store
        return base / "images"

    def bound(self, quota: int | str, more: str = "") -> None:
        """Set the quota of this store, and high = 90, low = 75."""
        text = f"[store]\nhigh = 90\nlow = 75\n{more}"
        if self.kind == "site":
            self.site.configure(text, quota=quota)
        else:
            self.site.configure(f"{text}[user]\nquota = {json.dumps(quota)}\n")

    def pull(self, name: str, *options: str) -> subprocess.CompletedProcess[str]:
        if name not in self.references:
            self.references[name] = tiny(self.site, name, data=os.urandom(IMAGE))
        words = ["image", "pull", *self.option, *options, self.references[name]]
        done = self.site.hpcpod(*words, uid=self.uid)
        assert done.returncode == 0, done.stderr
        self.digests[name] = done.stdout.strip()
        return done

    def age(self, name: str, days: float) -> None:
        """Make it look as if it was used so long ago."""
        then = time.time() - days * 86400
        for entry in self.images.glob(f"{self.digests[name].replace(':', '-')}*"):
            for path in (*entry.iterdir(), entry):
                os.utime(path, (then, then))

    def held(self) -> set[str]:
        found = {path.name.partition(".")[0].replace("-", ":", 1) for path in self.images.iterdir()}
        return {name for name, digest in self.digests.items() if digest in found}

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """``image WORD [--site] …``."""
        done = self.site.hpcpod("image", words[0], *self.option, *words[1:], uid=self.uid)
        assert done.returncode == 0, done.stderr
        return done

    def empty(self) -> bool:
        base = self.images.parent
        return not any(list((base / name).iterdir()) for name in ("tmp", "garbage"))


@pytest.fixture(params=["site", "user"])
def kept(request: pytest.FixtureRequest, site: Site) -> Iterator[Kept]:
    made = Kept(site, request.param)
    yield made
    assert made.empty()


NAMES = {"b": 9, "c": 8, "a": 7, "d": 6}
"""Images, and how many days ago they were used."""


def filled(kept: Kept) -> None:
    """With four images in the store, the fifth is expected to be too much: two have to go."""
    kept.bound("10600K")
    for name, days in NAMES.items():
        kept.pull(name)
        kept.age(name, days)
    assert kept.held() == {*NAMES}


def test_the_least_recently_used_go(kept: Kept) -> None:
    filled(kept)
    done = kept.pull("e")
    assert kept.held() == {"a", "d", "e"}
    for name in ("b", "c"):
        assert f"collected {kept.digests[name][:19]} (" in done.stderr
    assert done.stdout == f"{kept.digests['e']}\n"


def test_what_is_pinned_stays(kept: Kept) -> None:
    filled(kept)
    assert kept.run("pin", kept.references["b"]).stdout == f"{kept.digests['b']}\n"
    kept.pull("e")
    assert kept.held() == {"b", "d", "e"}
    assert kept.run("gc", "--all").stdout.startswith("removed 2 images, ")
    assert kept.held() == {"b"}
    kept.run("unpin", kept.digests["b"])
    kept.run("gc", "--all")
    assert kept.held() == set()


def test_gc_keeps_to_the_quota(kept: Kept) -> None:
    for name in ("a", "b", "c"):
        kept.pull(name)
        kept.age(name, {"a": 1, "b": 3, "c": 2}[name])
    assert kept.run("gc").stdout == "no image had to go\n"
    kept.bound("6M")
    done = kept.run("gc")
    assert kept.held() == {"a", "c"}
    assert done.stdout.startswith("removed 1 image, 2.0 MiB")
    kept.bound("1%")
    assert kept.run("gc").stdout == "no image had to go\n"


def test_an_image_larger_than_the_quota(kept: Kept) -> None:
    """By its layers before work starts; by its tree before it gets its name."""
    kept.bound("5M")
    kept.pull("a")
    kept.bound("1M")
    kept.run("pin", kept.references["a"])
    reference = tiny(kept.site, "b", data=os.urandom(IMAGE))
    words = ["image", "pull", *kept.option]
    said = kept.site.refused(*words, reference, slug="store-full", uid=kept.uid)
    assert "quota 1.0 MiB" in said and "takes 2.0 MiB or more" in said
    assert kept.held() == {"a"}
    zeros = tiny(kept.site, "zeros", data=bytes(IMAGE))
    said = kept.site.refused(*words, "--rootfs=dir", zeros, slug="store-full", uid=kept.uid)
    assert "quota 1.0 MiB" in said
    assert not any("zeros" in str(path) for path in kept.images.rglob("*"))


def test_nothing_is_collected_in_vain(kept: Kept) -> None:
    """What is pinned leaves no room: the others need not go."""
    kept.bound("20M")
    for name in ("a", "b", "c"):
        kept.pull(name)
    kept.run("pin", kept.references["a"], kept.references["b"])
    reference = tiny(kept.site, "d", data=os.urandom(IMAGE + IMAGE // 2))
    kept.bound("6M")
    said = kept.site.refused("image", "pull", *kept.option, reference, slug="store-full", uid=kept.uid)
    assert re.search(r"of which 4.[01] MiB are pinned or in use", said)
    assert kept.held() == {"a", "b", "c"}


def test_damaged_entries_go(kept: Kept) -> None:
    kept.pull("a")
    kept.pull("b")
    (entry,) = kept.images.glob(f"{kept.digests['a'].replace(':', '-')}*")
    (entry / "meta.json").write_text("{")
    done = kept.run("gc")
    assert f"removed {entry.name}: damaged" in done.stderr
    assert done.stdout == "no image had to go; removed 1 leftover\n"
    assert kept.held() == {"b"}


def test_df_and_why(kept: Kept) -> None:
    kept.bound("9M")
    kept.pull("a")
    kept.pull("b")
    kept.age("a", 3)
    kept.run("pin", kept.references["b"])
    stores = json.loads(kept.site.out("image", "df", "--json", uid=ALICE))
    (mine,) = [store for store in stores if store["store"] == kept.kind]
    assert set(mine) == {"store", "directory", "disk", "quota", "free", "images"}
    assert mine["directory"] == str(kept.images.parent) and mine["quota"] == 9 * MEGABYTE
    assert IMAGE * 2 <= mine["disk"] <= IMAGE * 2.2
    by_digest = {image["digest"]: image for image in mine["images"]}
    a, b = by_digest[kept.digests["a"]], by_digest[kept.digests["b"]]
    assert (a["kept"], a["pinned"], b["kept"], b["pinned"]) == ("", False, "pinned", True)
    assert abs(time.time() - 3 * 86400 - a["last_used"]) < 600 and IMAGE <= a["disk"] <= IMAGE * 1.1
    text = kept.site.out("image", "df", uid=ALICE)
    assert re.search(
        rf"{kept.kind} store {kept.images.parent}: 4.[01] MiB in 2 images, quota 9.0 MiB \(4", text
    )
    facts = json.loads(kept.site.out("image", "why", "--json", kept.references["a"], uid=ALICE))
    (found,) = [fact for fact in facts if fact["store"].startswith(kept.kind)]
    assert found["digest"] == kept.digests["a"] and found["stored"].startswith(str(kept.images))
    assert (found["kept"], found["collected"]) == ("nothing keeps it", "number 1 of 1")
    text = kept.site.out("image", "why", kept.digests["b"][:20], uid=ALICE)
    assert "kept        pinned\n" in text and "collected   never" in text
    for fact in json.loads(kept.site.out("image", "why", "--json", tiny(kept.site, "x"), uid=ALICE)):
        assert fact["stored"] == "no" and set(fact) == {"store", "stored", "how", "form", "node"}


# --------------------------------------------------------------------------- use


@pytest.mark.parametrize("form", ["dir", "squashfs"])
def test_a_run_makes_an_image_the_most_recently_used(site: Site, small: str, form: str) -> None:
    """Also by a plan that was made before."""
    kept = Kept(site, "user")
    kept.references["small"] = small
    for name in ("small", "a"):
        kept.pull(name, f"--rootfs={form}")
    for _ in range(2):
        kept.age("small", 9)
        kept.age("a", 5)
        site.pod(ALICE, small, "true", check=True)
        df = json.loads(site.out("image", "df", "--json", uid=ALICE))
        used = {image["reference"]: image["last_used"] for image in df[-1]["images"]}
        assert used[small] > time.time() - 600 > used[kept.references["a"]]


def test_a_run_of_the_sites_image_is_noted(site: Site, small: str) -> None:
    """The kernel notes that facts.json was read, unless the file system is mounted noatime."""
    kept = Kept(site, "site")
    kept.references["small"] = small
    for name in ("small", "a"):
        kept.pull(name, "--rootfs=squashfs")
        kept.age(name, 9)
    before = json.loads(site.out("image", "df", "--json", uid=ALICE))[0]["images"]
    assert all(image["last_used"] < time.time() - 8 * 86400 for image in before)  # looking is no use
    site.out("image", "gc", "--site")
    site.pod(ALICE, small, "true", check=True)
    df = json.loads(site.out("image", "df", "--json", uid=ALICE))[0]["images"]
    used = {image["reference"]: image["last_used"] for image in df}
    assert used[small] > time.time() - 600 > used[kept.references["a"]]
    site.out("image", "mount", kept.references["a"])
    site.out("image", "umount", "--all")
    df = json.loads(site.out("image", "df", "--json", uid=ALICE))[0]["images"]
    assert all(image["last_used"] > time.time() - 600 for image in df)


@pytest.mark.parametrize("options", [[], ["--writable"]], ids=["bind", "overlay"])
@pytest.mark.parametrize("form", ["dir", "squashfs"])
def test_a_users_image_in_use_is_not_collected(site: Site, small: str, form: str, options: list[str]) -> None:
    kept = Kept(site, "user")
    kept.references["small"] = small
    kept.pull("small", f"--rootfs={form}")
    with site.running(ALICE, small, options=options):
        kept.age("small", 90)
        kept.pull("a")
        kept.bound("4M")
        done = kept.run("gc")
        assert kept.held() == {"small"}, done
        done = kept.run("gc", "--all")
        assert kept.held() == {"small"} and "process" in done.stderr
        said = site.refused("image", "rm", small, slug="image-in-use", uid=ALICE)
        assert "runs in it" in said
    kept.run("gc", "--all")
    assert kept.held() == set()


# --------------------------------------------------------------------------- full disks


def in_small_disk(site: Site, megabytes: int, *commands: str) -> subprocess.CompletedProcess[str]:
    """Run commands, as shell lines, with our directory on a disk (a tmpfs) of this size."""
    disk = site.base / "disk"
    disk.mkdir(exist_ok=True)
    site.configure(store=f"{disk}/site")
    lines = [f"mount -t tmpfs -o size={megabytes}m,mode=755 t {disk}", *commands, f"find {disk} | sort"]
    return subprocess.run(
        ["unshare", "--mount", "sh", "-ec", "\n".join(lines)],
        env=site.account(0).environment(site.environment()),
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
    )


PULL = f"{sys.executable} -P -m hpcpod image pull --site"


def test_a_nearly_full_disk_makes_room_by_itself(site: Site) -> None:
    """Without any quota."""
    references = [tiny(site, name, data=os.urandom(4 * MEGABYTE)) for name in ("a", "b", "c", "d")]
    pulls = [f"{PULL} --rootfs=erofs {reference}; sleep 0.02" for reference in references]
    done = in_small_disk(site, 21, *pulls)
    assert done.returncode == 0, done.stderr
    assert "collected sha256:" in done.stderr
    entries = [line for line in done.stdout.splitlines() if line.endswith("/rootfs.erofs")]
    assert len(entries) in (1, 2, 3)
    assert "/site/tmp/" not in done.stdout and "/site/garbage/" not in done.stdout


def test_a_full_disk_is_not_emptied_in_vain(site: Site) -> None:
    small, large = tiny(site, "a", data=os.urandom(MEGABYTE)), tiny(site, "b", data=os.urandom(9 * MEGABYTE))
    done = in_small_disk(site, 8, f"{PULL} {small}", f"{PULL} {large} || echo status $?")
    assert "status 125" in done.stdout and "takes 9.0 MiB or more, 8." in done.stderr, done
    assert "collected" not in done.stderr and done.stdout.count("/rootfs.erofs") == 1


@pytest.mark.parametrize("form", ["squashfs", "erofs"])
def test_no_space_for_the_packed_file(site: Site, form: str) -> None:
    """The tree fits, its copy does not."""
    reference = tiny(site, "a", data=os.urandom(4 * MEGABYTE))
    done = in_small_disk(site, 6, f"{PULL} --rootfs={form} {reference} || echo status $?")
    assert "status 125" in done.stdout and "[store-full]" in done.stderr, done
    assert "no space left" in done.stderr.lower() or "ENOSPC" in done.stderr, done.stderr
    assert len(done.stderr.splitlines()) == 2
    found = [line.partition("/disk")[2] for line in done.stdout.splitlines() if "/disk" in line]
    assert found == ["", *(f"/site{name}" for name in ("", "/garbage", "/images", "/tmp", "/version"))]
