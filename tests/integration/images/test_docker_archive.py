# SPDX-License-Identifier: Apache-2.0
"""docker-archive: files of skopeo and podman, files built as Docker builds them, and hostile ones."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from hpcpod.errors import ImageInvalid
from hpcpod.images.limits import DEFAULT_LIMITS
from hpcpod.images.sources.docker_archive import DockerArchiveSource
from hpcpod.images.sources.reference import Reference
from tests.conftest import Account
from tests.testbed.layouts import file, hardlink, image, symlink, write_layout
from tests.testbed.places import Place

END = bytes(1024)


def tar(*members: bytes) -> bytes:
    return b"".join(members) + END


LOWER = tar(file(b"a", b"1"), file(b"gone", b"x"))
UPPER = tar(file(b"b", b"2"), file(b".wh.gone", b""))


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def config(*layers: bytes, **changes: Any) -> bytes:
    document = {
        "os": "linux",
        "architecture": "amd64",
        "config": {"Env": ["A=1"], "Cmd": ["/a"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest(layer)}" for layer in layers]},
    }
    return json.dumps(document | changes).encode()


CONFIG = config(LOWER, UPPER)


def listed(name: str = "config.json", *layers: str, tags: Any = ("me/my:1",)) -> dict[str, Any]:
    return {
        "Config": name,
        "RepoTags": tags and list(tags),
        "Layers": list(layers or ("l/layer.tar", "u.tar")),
    }


def saved(*images: Any, members: dict[str, bytes] | None = None, more: tuple[bytes, ...] = ()) -> bytes:
    """An archive with these files, and manifest.json for these images."""
    found = {"config.json": CONFIG, "l/layer.tar": LOWER, "u.tar": UPPER} if members is None else members
    parts = [file(name.encode(), data) for name, data in found.items()]
    manifest = json.dumps(list(images or (listed(),))).encode()
    return tar(*parts, *more, file(b"manifest.json", manifest))


def write(place: Place, data: bytes) -> str:
    path = place.account.home / "saved.tar"
    path.write_bytes(data)
    path.chmod(0o644)
    return f"docker-archive:{path}"


def test_what_is_in_it(place: Place) -> None:
    assert set(place.tree(write(place, saved()))) == {"a", "b"}


@pytest.mark.needs("skopeo")
def test_archives_of_skopeo(place: Place) -> None:
    layout = write_layout(place.account.home / "layout", image(file(b"a", b"1"), file(b"b", b"2")))
    path = place.account.home / "skopeo.tar"
    words = ["skopeo", "--insecure-policy", "copy", "-q", f"oci:{layout}", f"docker-archive:{path}:me/my:1"]
    subprocess.run(words, check=True)
    path.chmod(0o644)
    assert set(place.tree(f"docker-archive:{path}:me/my:1")) == {"a", "b"}


LINKED = (
    symlink(b"0/layer.tar", b"../l/layer.tar"),
    hardlink(b"1/layer.tar", b"u.tar"),
)


def test_layers_that_are_links(plain_place: Place) -> None:
    data = saved(listed("config.json", "0/layer.tar", "1/layer.tar"), more=LINKED)
    assert set(plain_place.tree(write(plain_place, data))) == {"a", "b"}


def test_compressed_layers_and_the_layout_of_new_versions(plain_place: Place) -> None:
    packed = gzip.compress(UPPER)
    names = [f"blobs/sha256/{digest(each)}" for each in (CONFIG, LOWER, packed)]
    data = saved(listed(*names), members=dict(zip(names, (CONFIG, LOWER, packed), strict=True)))
    assert set(plain_place.tree(write(plain_place, data))) == {"a", "b"}


OTHER = config(UPPER)
TWO = saved(
    listed(),
    listed("other.json", "u.tar", tags=["docker.io/library/debian:latest", "host:5000/x:2"]),
    listed("config.json", tags=None),
    members={"config.json": CONFIG, "l/layer.tar": LOWER, "u.tar": UPPER, "other.json": OTHER},
)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("me/my:1", {"a", "b"}),
        ("docker.io/me/my:1", {"a", "b"}),
        ("@0", {"a", "b"}),
        ("@1", {"b"}),
        ("debian", {"b"}),
        ("library/debian:latest", {"b"}),
        ("host:5000/x:2", {"b"}),
    ],
)
def test_one_of_several(plain_place: Place, name: str, expected: set[str]) -> None:
    assert set(plain_place.tree(f"{write(plain_place, TWO)}:{name}")) - {"gone"} == expected


@pytest.mark.parametrize("name", ["", ":me/my", ":me/my:2", ":@3", ":debian:12"])
def test_none_of_several(plain_place: Place, name: str) -> None:
    assert plain_place.refused(f"{write(plain_place, TWO)}{name}").slug == "image-not-found"


def test_a_compressed_archive_says_what_to_do(user: Account) -> None:
    path = user.home / "saved.tar.gz"
    path.write_bytes(gzip.compress(saved()))
    with pytest.raises(ImageInvalid) as caught:
        DockerArchiveSource(Reference("docker-archive", str(path)), DEFAULT_LIMITS)
    assert "gzip -d" in str(caught.value.hint)


SAID = f"{digest(b'other')}.json"
HOSTILE: dict[str, bytes] = {
    "empty": b"",
    "text": b"hello\n" * 1000,
    "cut": saved()[:1536],
    "manifest no list": tar(file(b"manifest.json", b"{}")),
    "manifest no JSON": tar(file(b"manifest.json", b"[")),
    "manifest of numbers": tar(file(b"manifest.json", b"[1]")),
    "manifest twice": saved(more=(file(b"manifest.json", b"[]"),)),
    "a key twice": tar(file(b"manifest.json", b'[{"Config": "a", "Config": "b", "Layers": []}]')),
    "keys in capitals": tar(file(b"manifest.json", b'[{"Config": "a", "CONFIG": "b", "Layers": []}]')),
    "a member twice": saved(more=(file(b"u.tar", LOWER),)),
    "a name upwards": saved(more=(file(b"../x", b""),)),
    "no config": saved(listed("missing.json")),
    "config upwards": saved(listed("../config.json")),
    "config that is absolute": saved(listed("/etc/passwd")),
    "config of another digest": saved(
        listed(SAID), members={SAID: CONFIG, "l/layer.tar": LOWER, "u.tar": UPPER}
    ),
    "no layer": saved(listed("config.json", "l/layer.tar", "missing.tar")),
    "a layer too few": saved(listed("config.json", "l/layer.tar")),
    "layers in another order": saved(listed("config.json", "u.tar", "l/layer.tar")),
    "another layer": saved(members={"config.json": CONFIG, "l/layer.tar": LOWER, "u.tar": LOWER}),
    "a layer with a byte more": saved(
        members={"config.json": CONFIG, "l/layer.tar": LOWER, "u.tar": UPPER + b"x"}
    ),
    "compressed, and cut": saved(
        members={"config.json": CONFIG, "l/layer.tar": LOWER, "u.tar": gzip.compress(UPPER)[:-4]}
    ),
    "a link out": saved(
        listed("config.json", "l/layer.tar", "0"), more=(symlink(b"0", b"../../etc/passwd"),)
    ),
    "an absolute link": saved(
        listed("config.json", "l/layer.tar", "0"), more=(symlink(b"0", b"/etc/passwd"),)
    ),
    "links in a ring": saved(
        listed("config.json", "l/layer.tar", "0"),
        more=(symlink(b"0", b"1"), symlink(b"1", b"0")),
    ),
    "diff_ids of a weak hash": saved(
        members={
            "config.json": config(rootfs={"type": "layers", "diff_ids": ["md5:" + "0" * 32] * 2}),
            "l/layer.tar": LOWER,
            "u.tar": UPPER,
        }
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_archives(plain_place: Place, case: str) -> None:
    assert plain_place.refused(write(plain_place, HOSTILE[case])).seconds < 5


def test_a_fifo(plain_place: Place) -> None:
    path: Path = plain_place.account.home / "saved.tar"
    os.mkfifo(path)
    assert plain_place.refused(f"docker-archive:{path}").seconds < 5
