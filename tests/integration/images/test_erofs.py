# SPDX-License-Identifier: Apache-2.0
"""erofs: and sqsh: files, by mkfs.erofs and mksquashfs with every option that changes what is written."""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path

import pytest

from tests.conftest import Account
from tests.integration.images.singles import command
from tests.testbed import trees
from tests.testbed.erofses import directory, erofs, file, symlink
from tests.testbed.places import Place

EROFS = {
    "plain": [],
    "lz4": ["-zlz4"],
    "lz4hc": ["-zlz4hc,12"],
    "large clusters": ["-zlz4hc", "-C65536"],
    "largest clusters": ["-zlz4", "-C1048576"],
    "short extents": ["-zlz4", "--max-extent-bytes=8192"],
    "full indexes": ["-zlz4hc", "-C32768", "-Elegacy-compress"],
    "chunks": ["--chunksize=4096"],
    "chunks in a map": ["-Eforce-inode-blockmap", "--chunksize=65536"],
    "chunks in indexes": ["-Eforce-chunk-indexes", "--chunksize=8192"],
    "extended inodes": ["-Eforce-inode-extended"],
    "ends in blocks": ["-Enoinline_data"],
    "ends in indexes": ["-zlz4", "-Eztailpacking"],
    "ends in indexes, large clusters": ["-zlz4hc", "-Eztailpacking", "-C65536"],
}
SQUASHFS = {
    "gzip": ["-comp", "gzip"],
    "xz": ["-comp", "xz"],
    "zstd": ["-comp", "zstd"],
    "lz4": ["-comp", "lz4"],
    "lz4 hc": ["-comp", "lz4", "-Xhc", "-b", "1M"],
}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("erofs") / "tree"
    trees.make(path)
    return path


def unpacked(user: Account, reference: str) -> Path:
    done = command(user, "image", "unpack", reference, "out")
    assert done.returncode == 0, done.stderr
    return user.home / "out"


@pytest.mark.needs("erofs-utils")
@pytest.mark.parametrize("form", EROFS)
def test_trees_of_mkfs_erofs(user: Account, tree: Path, form: str) -> None:
    image = user.home / "image.erofs"
    subprocess.run(["mkfs.erofs", "--quiet", *EROFS[form], image, tree], check=True)
    os.chmod(image, 0o644)
    trees.same(unpacked(user, f"erofs:{image}"), tree)


@pytest.mark.needs("squashfs-tools")
@pytest.mark.parametrize("form", SQUASHFS)
def test_trees_of_mksquashfs(user: Account, tree: Path, form: str) -> None:
    image = user.home / "image.sqsh"
    words: list[str | Path] = [
        "mksquashfs",
        tree,
        image,
        "-noappend",
        "-quiet",
        "-no-progress",
        *SQUASHFS[form],
    ]
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    os.chmod(image, 0o644)
    out = unpacked(user, f"sqsh:{image}")
    trees.same(out, tree, unit=1_000_000_000)
    digest = hashlib.sha256(image.read_bytes()).hexdigest()
    assert f"digest      sha256:{digest}\n" in command(user, "image", "inspect", f"sqsh:{image}").stdout


@pytest.mark.needs("squashfs-tools")
def test_lzo_is_named(user: Account, tree: Path) -> None:
    image = user.home / "image.sqsh"
    words: list[str | Path] = [
        "mksquashfs",
        tree / "small",
        image,
        "-noappend",
        "-quiet",
        "-no-progress",
        "-comp",
        "lzo",
    ]
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    os.chmod(image, 0o644)
    done = command(user, "image", "unpack", f"sqsh:{image}", "out")
    assert "squashfs: lzo compression is not read [image-unsupported]" in done.stderr
    assert "mksquashfs -comp zstd" in done.stderr


def write(place: Place, data: bytes, name: str = "image.erofs") -> str:
    path = place.account.home / name
    path.write_bytes(data)
    path.chmod(0o644)
    return f"erofs:{path}"


def test_a_pinned_digest(place: Place) -> None:
    data = erofs(directory({b"a": file(b"x"), b"l": symlink(b"../canary/file")}))
    reference = write(place, data)
    assert place.refused(f"{reference}@sha256:{'0' * 64}").slug == "image-digest"
    assert set(place.tree(f"{reference}@sha256:{hashlib.sha256(data).hexdigest()}")) == {"a", "l"}


HOSTILE = {
    "empty": b"",
    "text": b"hello\n" * 1000,
    "upwards": erofs(directory([(b"..x/../..", file(b"dead"))])),
    "a link, then what lies below it": erofs(
        directory([(b"a", symlink(b"../canary")), (b"a", directory({b"file": file(b"dead")}))])
    ),
    "a directory in itself": erofs(directory([(b"a", directory(bend={"loop": 1}))])),
    "huge file": erofs(directory({b"a": file(b"x", bend={"size": 1 << 62})})),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_images(place: Place, case: str) -> None:
    place.refused(write(place, HOSTILE[case]))


@pytest.mark.parametrize("transport", ["erofs", "sqsh", "sif", "docker-archive"])
@pytest.mark.parametrize("how", ["nothing", "fifo", "directory", "zeros"])
def test_files_of_other_kinds(plain_place: Place, transport: str, how: str) -> None:
    path = plain_place.account.home / "image"
    if how == "fifo":
        os.mkfifo(path)
    elif how == "directory":
        path.mkdir()
    elif how == "zeros":
        path.symlink_to("/dev/zero")
    assert plain_place.refused(f"{transport}:{path}").seconds < 5
