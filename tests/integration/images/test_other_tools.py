# SPDX-License-Identifier: Apache-2.0
"""Images that other tools wrote, and the trees that other tools make of them."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Account
from tests.testbed.layouts import (
    Image,
    Layer,
    directory,
    file,
    hardlink,
    long_name,
    pax,
    symlink,
    write_layout,
)
from tests.testbed.places import Place, scan

SETID = stat.S_ISUID | stat.S_ISGID


def fill(tree: Path) -> None:
    """A first layer: some of everything that a package has."""
    for name in ("usr/bin", "usr/lib/deep/er", "etc", "var/empty", "opt/gone/sub", "opt/kept"):
        (tree / name).mkdir(parents=True)
    (tree / "bin").symlink_to("usr/bin")
    (tree / "usr/bin/tool").write_bytes(os.urandom(300_000))
    (tree / "usr/bin/tool").chmod(0o755)
    (tree / "usr/bin/alias").hardlink_to(tree / "usr/bin/tool")
    (tree / "usr/bin/link").symlink_to("/usr/bin/tool")
    (tree / "usr/lib/deep/er" / ("n" * 200)).write_text("long name")
    (tree / "usr/lib/ünï\n").write_text("odd name")
    (tree / "etc/secret").write_text("x")
    (tree / "etc/secret").chmod(0o600)
    (tree / "var/empty").chmod(0o555)
    (tree / "opt/gone/sub/file").write_text("1")
    (tree / "opt/kept/file").write_text("1")
    os.utime(tree / "etc/secret", ns=(1_111_111_111_000_000_000,) * 2)


def change(tree: Path) -> None:
    """A second layer: removals, changes, a directory that becomes a link."""
    (tree / "opt/gone/sub/file").unlink()
    (tree / "opt/gone/sub").rmdir()
    (tree / "opt/gone").rmdir()
    (tree / "opt/kept/file").write_text("22")
    (tree / "etc/new").write_text("new")
    (tree / "usr/lib/deep/er" / ("n" * 200)).unlink()
    (tree / "usr/lib/deep/er").rmdir()
    (tree / "usr/lib/deep/er").symlink_to("/etc")
    (tree / "usr/bin/alias").unlink()


def umoci_image(account: Account) -> str:
    """Two layers by umoci, as the account's user."""
    layout, bundle = account.home / "umoci", account.home / "bundle"
    account.run(["umoci", "init", "--layout", layout], check=True)
    account.run(["umoci", "new", "--image", f"{layout}:t"], check=True)
    account.run(["umoci", "unpack", "--rootless", "--image", f"{layout}:t", bundle], check=True)
    for step in (fill, change):
        step(bundle / "rootfs")
        for path in (bundle / "rootfs").rglob("*"):
            os.chown(path, account.uid, account.uid, follow_symlinks=False)
        account.run(["umoci", "repack", "--image", f"{layout}:t", bundle], check=True)
        bundle = account.home / f"bundle.{step.__name__}"
        account.run(["umoci", "unpack", "--rootless", "--image", f"{layout}:t", bundle], check=True)
    return f"oci:{layout}:t"


def with_times(root: Path) -> dict[str, tuple[Any, ...]]:
    """As scan(), with times of change, and without set-user-ID bits, which umoci keeps."""
    found = {}
    for name, entry in scan(root).items():
        status = (root / name).lstat()
        found[name] = (
            stat.S_IFMT(status.st_mode),
            status.st_mode & 0o7777 & ~SETID,
            status.st_mtime_ns,
            *entry[1:],
        )
    return found


@pytest.mark.needs("umoci", "skopeo")
def test_trees_are_those_of_umoci(user: Account) -> None:
    place = Place(user)
    reference = umoci_image(user)
    place.tree(reference)
    ours, theirs = with_times(place.target), with_times(user.home / "bundle.change" / "rootfs")
    assert ours == theirs
    assert "opt/gone" not in ours
    # skopeo writes the same image as an archive, and in other compressions where it can.
    user.run(["skopeo", "copy", "--insecure-policy", reference, "oci-archive:image.tar:t"], check=True)
    for other in (f"oci-archive:{user.home}/image.tar:t", f"oci-archive:{user.home}/image.tar"):
        os.rename(place.target, user.home / f"tree.{other[-1]}")
        place.tree(other)
        assert with_times(place.target) == theirs


@pytest.mark.needs("umoci", "skopeo")
@pytest.mark.parametrize("form", ["zstd", "gzip"])
def test_compressions_by_skopeo(user: Account, form: str) -> None:
    place = Place(user)
    reference = umoci_image(user)
    options = ["--dest-compress-format", form, "--dest-compress-level", "3"]
    user.run(["skopeo", "copy", "--insecure-policy", *options, reference, "oci:again:t"], check=True)
    place.tree(f"oci:{user.home}/again:t")
    assert with_times(place.target) == with_times(user.home / "bundle.change" / "rootfs")


@pytest.mark.needs("umoci")
def test_umoci_reads_what_the_generator_writes(user: Account) -> None:
    """The tests' own writer is not a dialect."""
    tar = (
        directory(b"d")
        + file(b"d/f", b"1")
        + symlink(b"s", b"d/f")
        + hardlink(b"h", b"d/f")
        + long_name(b"d/" + b"x" * 150)
        + file(b"short", b"2")
        + pax({b"path": b"d/" + b"y" * 150})
        + file(b"short", b"3")
    )
    layout = write_layout(user.home / "layout", {"t": Image([Layer(tar), Layer(file(b"d/.wh.f"))])})
    user.run(["umoci", "unpack", "--rootless", "--image", f"{layout}:t", "bundle"], check=True)
    place = Place(user)
    assert place.tree(f"oci:{layout}") == scan(user.home / "bundle" / "rootfs")


def test_docker_types_are_read(plain_place: Place) -> None:
    """Layouts with Docker's media types are written by docker buildx."""
    docker = "application/vnd.docker"

    def bend(manifest: dict[str, Any]) -> dict[str, Any]:
        manifest["mediaType"] = f"{docker}.distribution.manifest.v2+json"
        manifest["config"]["mediaType"] = f"{docker}.container.image.v1+json"
        manifest["layers"][0]["mediaType"] = f"{docker}.image.rootfs.diff.tar.gzip"
        return manifest

    def bend_index(index: dict[str, Any]) -> dict[str, Any]:
        index["manifests"][0]["mediaType"] = f"{docker}.distribution.manifest.v2+json"
        return index

    reference = plain_place.layout(Image([Layer(file(b"a"))], bend_manifest=bend), bend_index=bend_index)
    assert set(plain_place.tree(reference)) == {"a"}
