# SPDX-License-Identifier: Apache-2.0
"""``hpcpod image verify``: whatever lies in a store, compared with what it was when it was made."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.integration.site.conftest import ACCOUNT, FIRST_USER, FORMS, Site, tiny
from tests.integration.site.test_flips import entry_of, flip

pytestmark = pytest.mark.needs("root", "plain", "userns", "overlay", "native", "fuse", "kernel-images")


def verdicts(site: Site, *words: str, status: int = 0, **more: Any) -> list[dict[str, Any]]:
    done = site.hpcpod("image", "verify", "--json", *words, **more)
    assert done.returncode == status, done
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("form", FORMS)
def test_each_form_is_good_until_it_is_not(site: Site, form: str) -> None:
    reference = tiny(site, "one", data=os.urandom(20_000))
    site.out("image", "pull", "--site", f"--rootfs={form}", reference)
    entry = entry_of(site)
    with_what = {"dir": "list of its files"}.get(form, "Merkle root")
    for said in ("nothing: list of its files made now" if form == "dir" else with_what, with_what):
        (verdict,) = verdicts(site, "--site", reference)
        assert verdict["good"] and verdict["form"] == form and verdict["compared_with"] == said
    content = entry / "rootfs" / "one-0" if form == "dir" else entry / f"rootfs.{form}"
    for document in (entry / "manifest.json", entry / "config.json", entry / "facts.json", content):
        flip(document, document.stat().st_size // 2)
        done = site.hpcpod("image", "verify", "--site", reference)
        assert done.returncode == 125 and "failed: image " in done.stdout, done
        assert done.stderr.splitlines()[0].endswith("[image-digest]")
        assert ("one-0 (changed)" if form == "dir" else entry.name) in done.stderr or document != content
        (verdict,) = verdicts(site, "--site", entry.name.partition("-")[2][:12], status=125)
        assert not verdict["good"] and verdict["error"]["name"] == "image-digest"
        flip(document, document.stat().st_size // 2)
    assert verdicts(site, "--site", reference)[0]["good"]


def test_what_can_happen_to_a_tree(site: Site) -> None:
    files = {"one-0": b"x", "odd\nname": b"y"}
    site.out("image", "pull", "--site", "--rootfs=dir", tiny(site, "one", count=5))
    root = entry_of(site) / "rootfs"
    for name, data in files.items():
        (root / name).write_bytes(data)
    (root / "d").mkdir()
    (root / "link").symlink_to("one-1")
    verdicts(site, "--site", "--all")

    def told(change: str, expected: str, back: str) -> None:
        subprocess.run(["sh", "-euc", change], cwd=root, check=True)
        said = site.refused_verify("--site", "--all")
        assert expected in said, said
        subprocess.run(["sh", "-euc", back], cwd=root, check=True)
        verdicts(site, "--site", "--all")

    told("touch new", "new (new)", "rm new")
    told("mv one-1 ..", "one-1 (gone)", "mv ../one-1 .")
    told("chmod 4755 one-1", "one-1 (changed)", "chmod 644 one-1")
    told("chmod 700 d", "d (changed)", "chmod 755 d")
    told("ln -sfn one-2 link", "link (changed)", "ln -sfn one-1 link")
    told("touch d/x 1 2 3", "and 1 more", "rm d/x 1 2 3")
    told("mkfifo p", "p (new)", "rm p")
    told("mv odd* x; mv x odd", "odd (new), odd\\nname (gone)", "mv odd 'odd\nname'")
    sums = root.parent / "rootfs.sums"
    flip(sums, sums.stat().st_size // 2)
    assert "the list of its files is not what was written" in site.refused_verify("--site", "--all")


def test_all_says_of_each(site: Site) -> None:
    """One that is damaged beyond its name as well."""
    for name, form in (("one", "erofs"), ("two", "squashfs"), ("three", "dir")):
        site.out("image", "pull", "--site", f"--rootfs={form}", tiny(site, name, data=os.urandom(9_000)))
    erofs, squashfs = (next((site.store / "images").glob(f"*.{form}")) for form in ("erofs", "squashfs"))
    flip(erofs / "rootfs.erofs", 5000)
    flip(squashfs / "meta.json", 30)
    found = verdicts(site, "--site", "--all", status=125)
    assert {verdict["form"]: verdict["good"] for verdict in found} == {
        "erofs": False,
        "squashfs": False,
        "dir": True,
    }
    done = site.hpcpod("image", "verify", "--site", "--all")
    assert done.stderr.startswith("hpcpod: 2 of 3 images: not what was written [image-digest]")


def test_users_may_ask_as_well(site: Site) -> None:
    """About the site's store, which they cannot write; and about their own."""
    reference = tiny(site, "one")
    site.out("image", "pull", "--site", "--rootfs=squashfs", reference)
    assert verdicts(site, "--site", "--all", uid=FIRST_USER)[0]["compared_with"] == "Merkle root"
    site.out("image", "pull", "--site", "--rootfs=dir", reference)
    said = {
        verdict["form"]: verdict["compared_with"]
        for verdict in verdicts(site, "--site", "--all", uid=FIRST_USER)
    }
    assert said["dir"] == "nothing: no list of its files yet, which root makes"
    site.out("image", "pull", "--rootfs=squashfs", tiny(site, "two"), uid=FIRST_USER)
    assert verdicts(site, "--all", uid=FIRST_USER)[0]["good"]


def test_the_account_cannot_have_a_list_of_its_own(site: Site) -> None:
    """Root makes it, where the account cannot write."""
    site.out("image", "pull", "--site", "--rootfs=dir", tiny(site, "one"))
    verdicts(site, "--site", "--all")
    status = (entry_of(site) / "rootfs.sums").stat()
    assert (status.st_uid, status.st_mode & 0o777) == (0, 0o444) != (ACCOUNT, 0)


@pytest.mark.parametrize("words", [[], ["--all", "01234567"]])
def test_images_or_all(site: Site, words: list[str]) -> None:
    site.refused("image", "verify", *words, slug="usage")


def test_why_says_what_guards_an_image(site: Site) -> None:
    reference = tiny(site, "one")
    for form in FORMS:
        site.out("image", "pull", "--site", f"--rootfs={form}", reference)
    told = json.loads(site.out("image", "why", "--json", reference))
    guarded = {fact["form"].partition(":")[0]: fact["guarded"] for fact in told if "guarded" in fact}
    assert guarded["dir"].startswith("by nothing: ")
    for form in FORMS[1:]:
        assert guarded[form].partition(":")[0] in ("compared", "dm-verity", "fs-verity")
    (file,) = Path(site.store).glob("images/*/rootfs.squashfs")
    file.unlink()
    assert "rootfs.squashfs" not in site.out("image", "why", reference)
