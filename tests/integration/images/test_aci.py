# SPDX-License-Identifier: Apache-2.0
"""aci: App Container Images, made by tar(1) as the specification shows, and those that must be refused."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import lzma
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from hpcpod.errors import ImageDigestMismatch, ImageInvalid
from hpcpod.images.limits import DEFAULT_LIMITS, Limits
from hpcpod.images.sources.aci_source import AciSource
from hpcpod.images.sources.reference import Reference
from hpcpod.log import Silent
from tests.conftest import Account
from tests.integration.images.singles import command, fill, manifest
from tests.testbed.acis import aci, image_id
from tests.testbed.layouts import directory, file, hardlink, header, symlink
from tests.testbed.places import AMD64, Place, scan

COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "none": bytes,
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
}
ROOTFS = directory(b"rootfs")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with manifest and rootfs, as the specification's example packs it."""
    path = tmp_path_factory.mktemp("aci")
    fill(path / "rootfs")
    (path / "manifest").write_bytes(manifest())
    return path


def packed(source: Path, *names: str) -> bytes:
    done = subprocess.run(["tar", "-C", source, "-cf", "-", *names], capture_output=True, check=True)
    return done.stdout


def written(account: Account, data: bytes) -> str:
    path = account.home / "image.aci"
    path.write_bytes(data)
    path.chmod(0o644)
    return f"aci:{path}"


@pytest.mark.needs("gcc")
@pytest.mark.parametrize("kind", COMPRESS)
def test_each_compression_gives_the_same_tree(user: Account, source: Path, kind: str) -> None:
    tar = packed(source, "manifest", "rootfs")
    reference = written(user, COMPRESS[kind](tar))
    pin = image_id(tar).replace(":", "-")
    done = command(user, "image", "unpack", f"{reference}@{pin}", "out")
    assert done.returncode == 0, done.stderr
    assert scan(user.home / "out") == scan(source / "rootfs")
    assert (user.home / "out/etc/secret").stat().st_mtime_ns == 1_111_111_111_000_000_000


@pytest.mark.needs("gcc")
@pytest.mark.parametrize("names", [["rootfs", "manifest"], ["."], ["./rootfs", "./manifest"]])
def test_the_manifest_may_stand_anywhere(user: Account, source: Path, names: list[str]) -> None:
    reference = written(user, packed(source, *names))
    assert command(user, "image", "unpack", reference, "out").returncode == 0
    assert scan(user.home / "out") == scan(source / "rootfs")


@pytest.mark.needs("gcc", "native", "userns")
def test_pull_run_and_remove(user: Account, source: Path, front: Path) -> None:
    tar = packed(source, "manifest", "rootfs")
    reference = written(user, gzip.compress(tar))
    digest = f"sha512:{hashlib.sha512(tar).hexdigest()}"
    pulled = command(user, "image", "pull", reference)
    assert (pulled.returncode, pulled.stdout.strip()) == (0, digest), pulled.stderr
    # Compressed in another way it is the same image, and is there already.
    other = user.home / "other.aci"
    other.write_bytes(tar)
    user.run([front, "run", f"aci:{other}"], check=True)
    assert len(list((user.store / "images").iterdir())) == 1
    for words, line in ([], "hello default true"), (["--", "/bin/alias", "word"], "hello word true"):
        assert user.run([front, "run", reference, *words], check=True).stdout == f"{line}\n"
    shown = command(user, "image", "inspect", reference).stdout
    assert f"digest      {digest}\n" in shown
    assert "org.opencontainers.image.title=example.com/hello\n" in shown
    assert command(user, "image", "rm", digest[:20]).stdout.strip() == digest


def test_a_wrong_id_leaves_nothing(place: Place) -> None:
    good = aci(ROOTFS + file(b"rootfs/a"))
    reference = written(place.account, gzip.compress(good))
    assert place.refused(f"{reference}@{image_id(b'')}").slug == "image-digest"
    assert set(place.tree(f"{reference}@{image_id(good)}")) == {"a"}


def test_another_image_than_the_pinned_one_is_said_before_what_is_wrong_with_it(plain_place: Place) -> None:
    reference = written(plain_place.account, aci(ROOTFS + file(b"elsewhere")))
    assert plain_place.refused(f"{reference}@{image_id(b'')}").slug == "image-digest"
    assert plain_place.refused(reference).slug == "image-invalid"


def test_a_white_list_is_kept_to(plain_place: Place) -> None:
    tree = ROOTFS + b"".join(
        (
            directory(b"rootfs/d", 0o750),
            file(b"rootfs/d/a"),
            file(b"rootfs/d/b"),
            symlink(b"rootfs/l", b"d"),
            header(b"rootfs/null", b"3"),
        )
    )
    image = aci(tree, manifest=manifest(pathWhitelist=["/d/a", "/l", "/absent"]))
    assert set(plain_place.tree(written(plain_place.account, image))) == {"d", "d/a", "l"}
    assert (plain_place.target / "d").stat().st_mode & 0o777 == 0o750


def test_dependencies_are_said_to_be_missing(plain_place: Place) -> None:
    image = aci(ROOTFS, manifest=manifest(dependencies=[{"imageName": "example.com/base"}]))
    outcome = plain_place.refused(written(plain_place.account, image))
    assert outcome.slug == "image-unsupported"
    assert "depends on example.com/base" in outcome.message


def test_what_a_pod_does_not_do_is_shown(user: Account) -> None:
    isolators = [{"name": "resource/memory", "value": {"limit": "1G"}}]
    app = {"exec": ["/a"], "user": "0", "group": "0", "isolators": isolators, "ports": []}
    reference = written(user, aci(ROOTFS, manifest=manifest(app=app)))
    assert "ignored     isolators\n            ports\n" in command(user, "image", "inspect", reference).stdout


def test_images_for_other_machines(plain_place: Place) -> None:
    labels = [{"name": "os", "value": "linux"}, {"name": "arch", "value": "s390x"}]
    image = aci(ROOTFS, manifest=manifest(labels=labels))
    assert plain_place.refused(written(plain_place.account, image)).slug == "image-platform"


HOSTILE: dict[str, bytes] = {
    "no manifest": ROOTFS + bytes(1024),
    "names outside": aci(ROOTFS + file(b"etc/passwd")),
    "upwards": aci(ROOTFS + file(b"rootfs/../../canary/file")),
    "absolute, outside": aci(ROOTFS + file(b"/canary/file")),
    "rootfs is a link": aci(symlink(b"rootfs", b"/")),
    "rootfs becomes a link": aci(ROOTFS + symlink(b"rootfs", b"../canary")),
    "through a file": aci(ROOTFS + file(b"rootfs/a") + file(b"rootfs/a/b")),
    "hard link outside": aci(ROOTFS + hardlink(b"rootfs/x", b"canary/file")),
    "hard link upwards": aci(ROOTFS + hardlink(b"rootfs/x", b"rootfs/../../canary/file")),
    "hard link to the manifest": aci(ROOTFS + hardlink(b"rootfs/x", b"manifest")),
    "manifest is a FIFO": aci(ROOTFS + header(b"manifest", b"6")),
    "manifest is too large": aci(ROOTFS, b'{"x": "' + b"y" * (5 << 20) + b'"}'),
    "manifest nested deep": aci(ROOTFS, b'{"a":' * 5000),
    "encrypted": b"\x8c\x0d\x04\x07\x03\x02" + bytes(600),
    "gzip cut": gzip.compress(aci(ROOTFS))[:-4],
    "xz cut": lzma.compress(aci(ROOTFS))[:-4],
    "bzip2 cut": bz2.compress(aci(ROOTFS))[:-4],
    "zip": b"PK\x03\x04" + bytes(600),
    "empty": b"",
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_images(plain_place: Place, case: str) -> None:
    plain_place.refused(written(plain_place.account, HOSTILE[case]))


def test_links_in_the_tree_lead_nowhere(place: Place) -> None:
    tree = ROOTFS + symlink(b"rootfs/l", b"../../canary") + file(b"rootfs/l/file", b"dead")
    place.unpack(written(place.account, aci(tree)))  # accepted or not, the canaries live


BOMB = aci(ROOTFS + file(b"rootfs/a", bytes(64 << 20)))
LIMITS = [Limits(bytes_out=1 << 20), Limits(entries=2), Limits(file_bytes=1 << 20)]


@pytest.mark.parametrize("kind", COMPRESS)
@pytest.mark.parametrize("limits", LIMITS, ids=["bytes_out", "entries", "file_bytes"])
def test_bombs(plain_place: Place, kind: str, limits: Limits) -> None:
    reference = written(plain_place.account, COMPRESS[kind](BOMB))
    outcome = plain_place.refused(reference, limits)
    assert outcome.slug == "image-limit"
    assert outcome.peak < 60 << 20


def test_memory_does_not_depend_on_the_image(plain_place: Place) -> None:
    for kind in ("gzip", "xz"):
        outcome = plain_place.unpack(written(plain_place.account, COMPRESS[kind](BOMB)))
        assert outcome.slug is None
        assert outcome.peak < 80 << 20
        subprocess.run(["rm", "-r", plain_place.target], check=True)


@pytest.mark.parametrize("kind", COMPRESS)
def test_a_file_that_changes_between_the_readings(tmp_path: Path, kind: str) -> None:
    path, out = tmp_path / "image.aci", tmp_path / "out"
    path.write_bytes(COMPRESS[kind](aci(ROOTFS + file(b"rootfs/a", b"good"))))
    out.mkdir()
    with AciSource(Reference("aci", str(path)), DEFAULT_LIMITS) as source:
        source.describe(AMD64)
        path.write_bytes(COMPRESS[kind](aci(ROOTFS + file(b"rootfs/a", b"evil"))))
        with pytest.raises(ImageInvalid) as caught:
            source.unpack(str(out), Silent())
    assert isinstance(caught.value, ImageDigestMismatch) or kind != "none"
