# SPDX-License-Identifier: Apache-2.0
"""sif: files of the format's own library, and files built to the format around squashfs images of mksquashfs.

Apptainer is in no package of Debian 12; tests/testbed/sifs.py writes after the published format.
"""

from __future__ import annotations

import hashlib
import os
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hpcpod.errors import ImageDigestMismatch
from hpcpod.images.limits import DEFAULT_LIMITS, Limits
from hpcpod.images.sources.reference import Reference
from hpcpod.images.sources.sif_source import SifSource
from hpcpod.log import Silent
from tests.conftest import Account
from tests.integration.images.singles import command, fill
from tests.testbed.places import AMD64, Place, scan
from tests.testbed.sif_sample import REAL
from tests.testbed.sifs import JSON, LABELS, SIGNATURE, Object, partition, sif
from tests.testbed.squashes import Node, directory, file, squash, symlink

ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, "")


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def written(account: Account, data: bytes) -> str:
    path = account.home / "image.sif"
    path.write_bytes(data)
    path.chmod(0o644)
    return f"sif:{path}"


def around(root: Node, **more: Any) -> bytes:
    """A SIF file around a tree."""
    return sif([partition(squash(root), **more)])


# --------------------------------------------------------------------------- real files


def test_a_file_of_the_format_s_own_library(user: Account) -> None:
    reference = written(user, REAL)
    words = ["--platform", "linux/386", f"{reference}@{digest(REAL)}"]
    done = command(user, "image", "unpack", *words, "out")
    assert done.returncode == 0, done.stderr
    assert {path.name: path.read_text() for path in (user.home / "out").iterdir()} == {
        "hello.txt": "Hello from Sylabs!\n"
    }
    shown = command(user, "image", "inspect", *words).stdout
    assert f"digest      {digest(REAL)}\n" in shown
    assert "2 partition 4096 B squashfs primary system 386\n" in shown
    assert "3 signature 1048 B of group 1\n" in shown
    here = command(user, "image", "unpack", reference, "other")
    assert here.returncode == 125
    assert "built for linux/386, not for" in here.stderr


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sif") / "tree"
    fill(path)
    for number in range(2000):  # more than a block of metadata, and than one block of fragments
        (path / f"usr/lib/deep/file-{number}").write_text(f"{number}" * (number % 50))
    (path / "bin/hello").chmod(0o4755)
    return path


def squashed(tree: Path, place: Path, *words: str) -> bytes:
    """The tree by mksquashfs."""
    image = place / "image.squashfs"
    image.unlink(missing_ok=True)
    options = ["-noappend", "-quiet", "-no-progress", "-all-root", *words]
    subprocess.run(["mksquashfs", tree, image, *options], check=True, stdout=subprocess.DEVNULL)
    return image.read_bytes()


FORMS = {
    "gzip": ["-comp", "gzip"],
    "xz": ["-comp", "xz", "-Xbcj", "x86"],
    "zstd": ["-comp", "zstd"],
    "small blocks": ["-b", "4K"],
    "large blocks": ["-b", "1M"],
    "no fragments": ["-no-fragments"],
    "all tails in fragments": ["-always-use-fragments"],
    "nothing compressed": ["-noI", "-noD", "-noF"],
    "no export table": ["-no-exports"],
}


@pytest.mark.needs("gcc", "squashfs-tools")
@pytest.mark.parametrize("form", FORMS)
def test_trees_of_mksquashfs(user: Account, tree: Path, tmp_path: Path, form: str) -> None:
    image = squashed(tree, tmp_path, *FORMS[form])
    reference = written(user, sif([partition(image, arch=ARCHITECTURE)], arch=ARCHITECTURE))
    done = command(user, "image", "unpack", reference, "out")
    assert done.returncode == 0, done.stderr
    assert not (user.home / "out/bin/hello").stat().st_mode & stat.S_ISUID
    (user.home / "out/bin/hello").chmod(0o4755)
    assert scan(user.home / "out") == scan(tree)
    assert (user.home / "out/etc/secret").stat().st_mtime_ns == 1_111_111_111_000_000_000
    assert (user.home / "out/usr/lib/hole").stat().st_blocks == 0


@pytest.mark.needs("gcc", "squashfs-tools", "native", "userns")
def test_pull_and_run(user: Account, tree: Path, tmp_path: Path, front: Path) -> None:
    metadata = b'{"data": {"attributes": {"labels": {"org.label-schema.usage": "x"}}}, "type": "container"}'
    data = sif(
        [
            Object(JSON, metadata, b"inspect-metadata.json"),
            partition(squashed(tree, tmp_path), arch=ARCHITECTURE),
        ],
        arch=ARCHITECTURE,
    )
    reference = written(user, data)
    pulled = command(user, "image", "pull", reference)
    assert (pulled.returncode, pulled.stdout.strip()) == (0, digest(data)), pulled.stderr
    ran = user.run([front, "run", reference, "--", "/bin/alias", "word"], check=True)
    assert ran.stdout == "hello word -\n"
    assert "labels      org.label-schema.usage=x\n" in command(user, "image", "inspect", reference).stdout


# --------------------------------------------------------------------------- hostile files


def test_a_wrong_digest_leaves_nothing(place: Place) -> None:
    data = around(directory({b"a": file(b"x")}))
    reference = written(place.account, data)
    assert place.refused(f"{reference}@{digest(b'')}").slug == "image-digest"
    assert set(place.tree(f"{reference}@{digest(data)}")) == {"a"}


UNSUPPORTED: dict[str, bytes] = {
    "ext3": sif([partition(b"x" * 4096, file_system=2)]),
    "encrypted": sif([partition(b"x" * 4096, file_system=5)]),
    "an OCI image": sif([Object(0x400A, b"{}")]),
    "lzo": sif([partition(squash(directory(), compression=3))]),
}


@pytest.mark.parametrize("case", UNSUPPORTED)
def test_what_is_not_read_is_said(plain_place: Place, case: str) -> None:
    assert plain_place.refused(written(plain_place.account, UNSUPPORTED[case])).slug == "image-unsupported"


SHARED = directory({b"x": file(b"a")})
HOSTILE: dict[str, bytes] = {
    "nothing in it": sif([]),
    "no primary partition": sif([partition(squash(directory()), use=3), Object(SIGNATURE, b"s")]),
    "no squashfs": sif([partition(b"x" * 5000)]),
    "cut": around(directory())[:-100],
    "upwards": around(directory([(b"..", directory({b"canary": file(b"dead")}))])),
    "name with slashes": around(directory([(b"../canary/file", file(b"dead"))])),
    "absolute name": around(directory([(b"/tmp/dead", file(b"dead"))])),
    "a link, then what lies below it": around(
        directory([(b"a", symlink(b"../canary")), (b"a", directory({b"file": file(b"dead")}))])
    ),
    "a directory in two places": around(directory({b"a": SHARED, b"b": SHARED})),
    "a directory in itself": around(directory([(b"a", directory([(b"x", Node(1, bend={"loop": 1}))]))])),
    "labels that are no JSON": sif([Object(LABELS, b"{"), partition(squash(directory()))]),
    "labels with an escape": sif([Object(LABELS, b'{"a": 1}'), partition(squash(directory()))]),
    "huge file": around(directory({b"a": file(b"x", bend={"size": 1 << 62})})),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files(place: Place, case: str) -> None:
    place.refused(written(place.account, HOSTILE[case]))


def test_links_lead_nowhere(place: Place) -> None:
    found = place.tree(written(place.account, around(directory({b"l": symlink(b"../canary/file")}))))
    assert found["l"][1] == "../canary/file"


def test_devices_are_left_out(place: Place) -> None:
    data = around(directory({b"a": file(b"x", mode=0o6755), b"c": Node(5), b"p": Node(6), b"s": Node(7)}))
    outcome = place.unpack(written(place.account, data))
    assert outcome.value["skipped"] == 3
    assert set(scan(place.target)) == {"a"}
    assert (place.target / "a").stat().st_mode & 0o7777 == 0o755


BOMBS: dict[str, tuple[Callable[[], Node], Limits]] = {
    "a hole": (lambda: directory({b"a": file(bytes(4096 * 500))}), Limits(bytes_out=1 << 20)),
    "many of one block": (
        lambda: directory({b"%03d" % number: file(b"x" * 4096) for number in range(300)}),
        Limits(bytes_out=1 << 20),
    ),
    "entries": (lambda: directory({b"%03d" % number: file() for number in range(30)}), Limits(entries=30)),
    "one file": (lambda: directory({b"a": file(bytes(9000))}), Limits(file_bytes=8999)),
}


@pytest.mark.parametrize("case", BOMBS)
def test_bombs(plain_place: Place, case: str) -> None:
    make, limits = BOMBS[case]
    outcome = plain_place.refused(written(plain_place.account, around(make())), limits)
    assert outcome.slug == "image-limit"


def test_a_file_that_changes_meanwhile(tmp_path: Path) -> None:
    path, out = tmp_path / "image.sif", tmp_path / "out"
    random = os.urandom(32 << 20)  # more than is kept of what was hashed
    path.write_bytes(around(directory({b"a": file(random)})))
    out.mkdir()
    with SifSource(Reference("sif", str(path)), DEFAULT_LIMITS) as source:
        source.describe(AMD64)
        path.write_bytes(around(directory({b"a": file(random[1:] + b"x")})))
        with pytest.raises(ImageDigestMismatch):
            source.unpack(str(out), Silent())


def test_what_was_hashed_is_what_is_unpacked(tmp_path: Path) -> None:
    """A small file is held from its description on: what is written to it meanwhile is nobody's image."""
    path, out = tmp_path / "image.sif", tmp_path / "out"
    path.write_bytes(around(directory({b"a": file(b"good")})))
    out.mkdir()
    with SifSource(Reference("sif", str(path)), DEFAULT_LIMITS) as source:
        source.describe(AMD64)
        path.write_bytes(around(directory({b"a": file(b"evil")})))
        source.unpack(str(out), Silent())
    assert (out / "a").read_text() == "good"
