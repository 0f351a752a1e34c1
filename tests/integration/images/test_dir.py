# SPDX-License-Identifier: Apache-2.0
"""dir: trees: copied whole, named by a digest that anybody can compute; fingerprints are cheap."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import stat
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hpcpod.errors import ImageDigestMismatch
from hpcpod.images.limits import DEFAULT_LIMITS, Limits
from hpcpod.images.sources.dir_source import DirSource
from hpcpod.images.sources.reference import Reference
from hpcpod.log import Silent
from tests.testbed import trees
from tests.testbed.places import AMD64, Place, scan


def listed(top: Path) -> str:
    """The digest, computed as docs/reference/images.md says and in no other way."""
    listing = hashlib.sha256(b"d %o .\0" % (top.stat().st_mode & 0o1777))
    first: dict[int, bytes] = {}

    def walk(directory: bytes, above: bytes) -> None:
        for name in sorted(os.listdir(directory)):
            path, status = above + name, os.lstat(directory + b"/" + name)
            if stat.S_ISDIR(status.st_mode):
                listing.update(b"d %o %s\0" % (status.st_mode & 0o1777, path))
                walk(directory + b"/" + name, path + b"/")
            elif not stat.S_ISREG(status.st_mode) and not stat.S_ISLNK(status.st_mode):
                continue
            elif first.setdefault(status.st_ino, path) != path:
                listing.update(b"h 0 %s\0%s\0" % (path, first[status.st_ino]))
            elif stat.S_ISLNK(status.st_mode):
                listing.update(b"l 0 %s\0%s\0" % (path, os.readlink(directory + b"/" + name)))
            else:
                data = Path(os.fsdecode(directory + b"/" + name)).read_bytes()
                content = hashlib.sha256(data).hexdigest().encode()
                listing.update(b"f %o %s\0%d %s\0" % (status.st_mode & 0o777, path, len(data), content))

    walk(os.fsencode(top), b"")
    return f"sha256:{listing.hexdigest()}"


def source(path: Path, limits: Limits = DEFAULT_LIMITS, digest: str = "") -> DirSource:
    return DirSource(Reference("dir", str(path), "", digest), limits)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    path = tmp_path / "tree"
    trees.make(path)
    return path


def copied(path: Path, out: Path, digest: str = "") -> str:
    out.mkdir()
    with source(path, digest=digest) as opened:
        described = opened.describe(AMD64)
        opened.unpack(str(out), Silent())
    return described.digest


def test_a_copy_is_whole_and_has_the_digest_that_is_documented(tree: Path, tmp_path: Path) -> None:
    assert copied(tree, tmp_path / "out") == listed(tree)
    trees.same(tmp_path / "out", tree)
    assert (tmp_path / "out/hole").stat().st_blocks == 0
    assert copied(tmp_path / "out", tmp_path / "again") == listed(tree)


def test_the_digest_is_of_what_a_store_keeps(tree: Path, tmp_path: Path) -> None:
    before = listed(tree)
    os.utime(tree / "secret", ns=(5, 5))
    os.mkfifo(tree / "fifo")
    (tree / "small/file-1").chmod(0o4644)
    assert copied(tree, tmp_path / "out") == before
    (tree / "secret").chmod(0o600)
    assert copied(tree, tmp_path / "other") == listed(tree) != before


def test_a_pinned_digest(tree: Path, tmp_path: Path) -> None:
    copied(tree, tmp_path / "out", listed(tree))
    with pytest.raises(ImageDigestMismatch):
        copied(tree, tmp_path / "other", "sha256:" + "0" * 64)


def home(place: Place) -> Path:
    path = place.account.home / "tree"
    path.mkdir()
    (path / "a").write_text("x")
    return path


def give(place: Place) -> str:
    path = place.account.home / "tree"
    for each in (path, *path.rglob("*")):
        os.chown(each, place.account.uid, place.account.uid, follow_symlinks=False)
    return f"dir:{path}"


def test_special_files_are_left_out(place: Place) -> None:
    path = home(place)
    os.mkfifo(path / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path / "socket"))
    (path / "link").symlink_to("../canary/file")
    (path / "up").symlink_to("..")
    outcome = place.unpack(give(place))
    assert (outcome.slug, outcome.value["skipped"]) == (None, 2)
    assert set(scan(place.target)) == {"a", "link", "up"}


def test_a_file_that_may_not_be_read_is_named(plain_place: Place) -> None:
    path = home(plain_place)
    (path / "shadow").write_text("x")
    reference = give(plain_place)
    (path / "shadow").chmod(0)
    outcome = plain_place.refused(reference)
    assert "shadow: may not be read (EACCES)" in outcome.message


BAD: dict[str, Callable[[Path], object]] = {
    "nothing": lambda path: None,
    "file": lambda path: path.write_text("x"),
    "fifo": os.mkfifo,
    "link to nothing": lambda path: path.symlink_to("missing"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_directory(plain_place: Place, case: str) -> None:
    path = plain_place.account.home / "tree"
    BAD[case](path)
    assert plain_place.refused(f"dir:{path}").slug == "image-not-found"


def test_a_tree_that_holds_the_copy(plain_place: Place) -> None:
    assert "which it would be copied to" in plain_place.refused(f"dir:{plain_place.account.home}").message


def test_limits(plain_place: Place) -> None:
    path = home(plain_place)
    for number in range(30):
        (path / f"n{number}").write_text("x" * 100)
    reference = give(plain_place)
    for limits in (
        Limits(entries=20),
        Limits(file_bytes=99),
        Limits(bytes_out=2000),
        Limits(names_bytes=500),
    ):
        assert plain_place.refused(reference, limits).slug == "image-limit"


@pytest.mark.parametrize("change", ["content", "name", "mode", "link"])
def test_a_change_between_digest_and_copy(tree: Path, tmp_path: Path, change: str) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with source(tree) as opened:
        opened.describe(AMD64)
        if change == "content":
            (tree / "small/file-9").write_text("other")
        elif change == "name":
            (tree / "small/file-9").rename(tree / "small/file-x")
        elif change == "mode":
            (tree / "secret").chmod(0o777)
        else:
            (tree / "link").unlink()
            (tree / "link").symlink_to("elsewhere")
        with pytest.raises(ImageDigestMismatch):
            opened.unpack(str(out), Silent())


def test_fingerprints(tree: Path) -> None:
    with source(tree) as opened:
        first = opened.fingerprint()
        assert first.digest == opened.fingerprint().digest
        assert not first.settled  # the tree was made just now
        assert first.entries == 1 + len(list(tree.rglob("*")))
        seen = {first.digest}
        changes: list[Callable[[], object]] = [
            lambda: (tree / "small/file-3").write_text("y"),
            lambda: (tree / "secret").chmod(0o600),
            lambda: (tree / "new").write_text(""),
            lambda: (tree / "new").rename(tree / "newer"),
            lambda: os.utime(tree / "hole", ns=(1, 1)),
        ]
        for change in changes:
            change()
            seen.add(opened.fingerprint().digest)
        assert len(seen) == len(changes) + 1
        time.sleep(2.1)
        assert opened.fingerprint().settled


def test_what_apptainer_left_in_a_tree(tree: Path) -> None:
    made = tree / ".singularity.d"
    (made / "env").mkdir(parents=True)
    (made / "env/10-docker2singularity.sh").write_text(
        '#!/bin/sh\nexport PATH="/opt/bin:$PATH"\nexport A="${A:-"a b"}"\nexport B=\'$x\'\n'
    )
    (made / "runscript").write_text("#!/bin/sh\nexec /bin/x\n")
    (made / "labels.json").write_text(json.dumps({"who": "me"}))
    with source(tree) as opened:
        config = opened.describe(AMD64).config.config
        path = "/opt/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        assert config.env == (("PATH", path), ("A", "a b"), ("B", "$x"))
        assert config.entrypoint == ("/.singularity.d/runscript",)
        assert config.labels == (("who", "me"),)
    (made / "env/90-environment.sh").write_text("export C=1\nexport D=$(hostname)\nexport E=1\n")
    with source(tree) as opened:
        described = opened.describe(AMD64)
        assert dict(described.config.config.env)["C"] == "1"
        assert "E" not in dict(described.config.config.env)
        assert described.config.config.entrypoint[:2] == ("/bin/sh", "-c")
        assert "90-environment.sh from line 2" in str(described.details)


def test_what_charliecloud_left_in_a_tree(tree: Path) -> None:
    (tree / "ch").mkdir()
    metadata = {"arch": "amd64", "cwd": "/job", "env": {"A": "1", "B": "2"}, "labels": {}, "shell": ["sh"]}
    (tree / "ch/metadata.json").write_text(json.dumps(metadata))
    (tree / "ch/environment").write_text("B='3 4'\nC=5\n")
    with source(tree) as opened:
        config = opened.describe(AMD64).config.config
        assert (config.env, config.workdir) == ((("A", "1"), ("B", "3 4"), ("C", "5")), "/job")


def test_what_enroot_left_in_a_tree(tree: Path) -> None:
    (tree / "etc").mkdir()
    (tree / "etc/rc").write_text(
        'mkdir -p "/w" 2> /dev/null\ncd "/w" && unset OLDPWD || exit 1\nexec /bin/x\n'
    )
    (tree / "etc/environment").write_text(
        "# no\n  A=1\nB='x y'\nENROOT_X=1\nDISPLAY=${DISPLAY}\nC=${HOME}/c\n1=2\n"
    )
    (tree / "etc/fstab").write_text("tmpfs /tmp\n")
    with source(tree) as opened:
        described = opened.describe(AMD64)
        config = described.config.config
        assert config.env == (("A", "1"), ("B", "x y"))
        assert (config.entrypoint, config.workdir) == (("/bin/sh", "/etc/rc"), "/w")
        assert {name for name, _ in described.details} == {"environment", "ignored"}
