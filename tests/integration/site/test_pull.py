# SPDX-License-Identifier: Apache-2.0
"""Root fills the site's store through an account without privileges; nobody else can change what is in it."""

from __future__ import annotations

import json
import stat
import sys
from pathlib import Path

import pytest

from tests.integration.site.conftest import ACCOUNT, FIRST_USER, FORMS, Site, tiny
from tests.testbed import acis, layouts

pytestmark = pytest.mark.needs("root", "plain", "kernel-images")


def others(root: Path) -> list[str]:
    """What below root is not root's, or can be written by anybody else."""
    found = []
    for path in (root, *root.rglob("*")):
        status = path.lstat()
        writable = not stat.S_ISLNK(status.st_mode) and status.st_mode & 0o022
        if (status.st_uid, status.st_gid) != (0, 0) or writable:
            found.append(f"{path.relative_to(root)} {status.st_uid}:{status.st_gid} {status.st_mode:o}")
    return found


def loose(site: Site) -> str:
    """An image with all that lets others write."""
    tar = b"".join(
        [
            layouts.directory(b"tmp", 0o1777),
            layouts.directory(b"open", 0o777),
            layouts.file(b"open/file", b"x", mode=0o666),
            layouts.file(b"open/program", b"x", mode=0o6777),
            layouts.hardlink(b"open/second", b"open/file"),
            layouts.symlink(b"open/link", b"/etc/shadow"),
            layouts.file(b"closed", b"x", mode=0),
        ]
    )
    return f"oci:{layouts.write_layout(site.base / 'loose', layouts.image(tar))}"


@pytest.mark.parametrize("form", FORMS)
def test_what_is_published_is_roots(site: Site, form: str) -> None:
    digest = site.out("image", "pull", "--site", f"--rootfs={form}", loose(site))
    (name,) = site.entries()
    assert name == digest.replace(":", "-") + ("" if form == "dir" else f".{form}")
    assert others(site.store / "images") == []
    assert not any(path.lstat().st_mode & 0o6000 for path in (site.store / "images").rglob("*"))
    site.assert_idle()
    # And everybody may read it.
    done = site.account(FIRST_USER).run(
        ["sh", "-c", f"find {site.store}/images -type f | xargs cat >/dev/null"]
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert [path.stat().st_uid for path in (site.store / "tmp", site.store / "garbage")] == [ACCOUNT, 0]
    modes = [(site.store / name).stat().st_mode & 0o777 for name in ("tmp", "garbage")]
    assert modes == [0o700, 0o700]


def test_the_best_form_is_chosen_and_the_second_pull_does_nothing(site: Site) -> None:
    reference = tiny(site, "one")
    digest = site.out("image", "pull", "--site", reference)
    assert site.entries() == [digest.replace(":", "-") + ".erofs"]
    before = (site.store / "images").stat().st_mtime_ns
    assert site.out("image", "pull", "--site", reference) == digest
    assert (site.store / "images").stat().st_mtime_ns == before
    (entry,) = json.loads(site.out("image", "list", "--json", uid=FIRST_USER))
    assert (entry["digest"], entry["store"], entry["form"]) == (digest, "site", "erofs")


@pytest.mark.parametrize("umask", [0o077, 0o000])
def test_whatever_the_umask_of_root(site: Site, umask: int) -> None:
    reference = tiny(site, "one")
    site.configure(store=f"{site.base}/deep/site")
    site.out("image", "pull", "--site", "--rootfs=dir", reference, umask=umask)
    found = json.loads(site.out("image", "list", "--json", uid=FIRST_USER))
    assert [entry["store"] for entry in found] == ["site"]
    assert Path(f"{site.base}/deep").stat().st_mode & 0o777 == 0o755
    site.out("image", "mount", "--lease", "a", reference, umask=umask)
    df = json.loads(site.out("image", "df", "--json", uid=FIRST_USER))
    assert df[0]["images"][0]["kept"] == "leased by a"


def test_relative_references(site: Site) -> None:
    tiny(site, "one")
    site.base.chmod(0o755)
    assert site.out("image", "pull", "--site", "oci:one", cwd=site.base).startswith("sha256:")


def test_an_image_that_the_account_cannot_read(site: Site) -> None:
    reference = tiny(site, "one")
    (site.base / "one").chmod(0o700)
    said = site.refused("image", "pull", "--site", reference, slug="image-not-found")
    assert f"{site.base}/one: may not be read (EACCES)" in said
    assert f"hint: uid {ACCOUNT} reads it, not root" in said
    assert site.entries() == []
    site.assert_idle()


@pytest.mark.parametrize(
    ("account", "message"),
    [
        ("nobody-of-that-name", "site store: account nobody-of-that-name: not known on this node"),
        ("root", "site store: account root: is root's"),
        ("0", "site store: account 0: is root's"),
        ("", "site store: account "),
        ("\u00b2", "site store: account "),
        ("99999999999999999999", "site store: account 99999999999999999999: not known on this node"),
    ],
)
def test_accounts_that_cannot_be(site: Site, account: str, message: str) -> None:
    site.configure(account=account)
    assert message in site.refused("image", "pull", "--site", tiny(site, "one"), slug="store-unusable")
    assert not site.store.exists()


def test_another_account_than_before(site: Site) -> None:
    site.out("image", "pull", "--site", tiny(site, "one"))
    site.configure(account=ACCOUNT + 1)
    said = site.refused("image", "pull", "--site", tiny(site, "two"), slug="store-unusable")
    assert f"{site.store}/tmp: not a directory of uid {ACCOUNT + 1}" in said


@pytest.mark.parametrize(
    "words",
    [
        ["pull", "--site", "oci:x"],
        ["rm", "--site", "01234567"],
        ["gc", "--site"],
        ["pin", "--site", "01234567"],
        ["unpin", "--site", "01234567"],
        ["mount", "oci:x"],
        ["umount", "--all"],
    ],
)
def test_only_root_changes_it(site: Site, words: list[str]) -> None:
    said = site.refused("image", *words, slug="store-unusable", uid=FIRST_USER)
    assert said.startswith("hpcpod: site store: only root changes it [store-unusable]\n")


def test_without_a_site_store(site: Site) -> None:
    site.configure(store="")
    said = site.refused("image", "pull", "--site", "oci:x", slug="store-unusable")
    assert said.startswith("hpcpod: site store: none, by [site] store in hpcpod.toml")
    assert site.out("image", "list", "--json", uid=FIRST_USER) == "[]"


def test_bad_images_leave_nothing(site: Site) -> None:
    layout = site.base / "bad"
    layouts.write_layout(layout, layouts.image(layouts.file(b"f", b"x" * 5000)))
    for blob in (layout / "blobs" / "sha256").iterdir():
        if blob.read_bytes()[:2] == b"\x1f\x8b":
            blob.write_bytes(blob.read_bytes()[:-1] + b"\xff")
    for form in FORMS:
        site.refused("image", "pull", "--site", f"--rootfs={form}", f"oci:{layout}", slug="image-digest")
        assert site.entries() == []
        site.assert_idle()


def test_other_formats(site: Site) -> None:
    """An image of one file, named by a digest of its own kind."""
    (site.base / "image.aci").write_bytes(acis.aci())
    reference = f"aci:{site.base}/image.aci"
    digest = site.out("image", "pull", "--site", reference)
    assert digest.startswith("sha512:") and site.entries() == [f"{digest.replace(':', '-')}.erofs"]
    place = Path(site.out("image", "mount", reference))
    assert place.is_dir() and site.mounted() == site.entries()
    assert site.out("image", "umount", digest[:30]) == site.entries()[0]
    site.out("image", "rm", "--site", reference)


def test_two_roots_at_once_make_one_image(site: Site) -> None:
    """Also the store itself: neither is there yet."""
    reference = tiny(site, "many", count=200)
    started = [site.start("image", "pull", "--site", reference) for _ in range(4)]
    ends = [process.communicate(timeout=60) for process in started]
    assert [process.returncode for process in started] == [0] * 4, ends
    assert len({out for out, _ in ends}) == len(site.entries()) == 1
    site.assert_idle()


@pytest.mark.needs("strace")
def test_root_does_not_parse(site: Site) -> None:
    """In its own process neither an index nor a configuration is read."""
    reference, hpcpod = tiny(site, "one"), f"{sys.executable} -P -m hpcpod image"
    commands = [
        "pull --site --rootfs=dir",
        "pull --site --rootfs=squashfs",
        "mount --rootfs=erofs",
        "mount --rootfs=squashfs",
        "pin --site",
        "unpin --site",
        "umount",
        "rm --site",
    ]
    script = "\n".join([*(f"{hpcpod} {command} {reference}" for command in commands), f"{hpcpod} gc --site"])
    words = ["strace", "-f", "-e", "trace=openat,setresuid", "-o", f"{site.base}/trace", "sh", "-exc", script]
    done = site.account(0).run(words, env=site.environment())
    assert done.returncode == 0, done.stderr
    assert_root_reads_no_image(site)


def assert_root_reads_no_image(site: Site) -> None:
    dropped: set[str] = set()
    reads = 0
    for line in (site.base / "trace").read_text().splitlines():
        pid = line.split()[0]
        if "setresuid(" in line and f"setresuid({ACCOUNT}" in line:
            dropped.add(pid)
        # Bare names of documents: root takes them over, by descriptor, unread.
        if any(name in line for name in ("index.json", "/config.json", "/facts.json", "oci-layout")):
            assert pid in dropped, line
            reads += 1
    assert reads > len(dropped) / 2


def test_the_doctor_sees_it(site: Site) -> None:
    def found() -> tuple[str, str]:
        rows = json.loads(site.hpcpod("doctor", "--json", uid=FIRST_USER).stdout)["findings"]
        (row,) = [row for row in rows if row["subject"] == "site store"]
        return row["level"], row["message"]

    assert found() == ("warn", f"{site.store}: not there: users' own stores are used")
    site.out("image", "mount", tiny(site, "one"))
    site.out("image", "pull", "--site", "--rootfs=dir", tiny(site, "two"))
    assert found() == ("ok", f"{site.store} (2 images, 1 mounted)")
    site.out("image", "umount", "--all")
    site.store.chmod(0o777)
    assert found()[0] == "warn"
