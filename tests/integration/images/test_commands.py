# SPDX-License-Identifier: Apache-2.0
"""The image command as users see it: exit codes, one-line messages, output; and what a start imports."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import PACKAGES, Account
from tests.testbed.layouts import Image, Layer, digest, file, header, image, write_layout

HPCPOD = [sys.executable, "-m", "hpcpod"]
PYTHON = {"PYTHONPATH": PACKAGES}
AMD64 = ["--platform", "linux/amd64"]
GOOD = image(file(b"a", b"1") + header(b"null", b"3"), config={"Cmd": ["/a"], "Labels": {"x": "\x1b[0m"}})


def run(account: Account, *words: str) -> subprocess.CompletedProcess[str]:
    return account.run([*HPCPOD, "image", *words], env=PYTHON)


@pytest.fixture
def reference(user: Account) -> str:
    return f"oci:{write_layout(user.home / 'layout', GOOD)}"


def test_unpack(user: Account, reference: str) -> None:
    done = run(user, "unpack", *AMD64, reference, "out")
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == "hpcpod: left out 1 device or FIFO of the image: a pod has the node's devices\n"
    assert (user.home / "out" / "a").read_text() == "1"
    assert (user.home / "out").stat().st_mode & 0o777 == 0o755


REFUSALS = {
    "exists": ["REF", "layout"],
    "parent missing": ["REF", "no/out"],
    "parent is a file": ["REF", "layout/index.json/out"],
    "no such layout": ["oci:nothing", "out"],
    "no such transport": ["docker://debian", "out"],
    "limit": ["--max-bytes", "1k", "REF", "out"],
    "bad number": ["--max-bytes", "1_0", "REF", "out"],
    "bad platform": ["--platform", "amd64", "REF", "out"],
    "no digest": ["REF@sha256:0", "out"],
    "unwritable parent": ["REF", "/proc/out"],
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals(user: Account, reference: str, case: str) -> None:
    words = [word.replace("REF", reference) for word in REFUSALS[case]]
    before = sorted(user.home.rglob("*"))
    done = run(user, "unpack", *(words if "--platform" in words else [*AMD64, *words]))
    assert done.returncode == 125
    first, *rest = done.stderr.splitlines()
    assert first.startswith("hpcpod: ")
    assert first.endswith("]")
    assert all(line.startswith("hint: ") for line in rest[:1])
    assert len(rest) <= 1
    assert sorted(user.home.rglob("*")) == before


def test_likely_mistakes_are_answered_with_the_right_form(user: Account, reference: str) -> None:
    (user.home / "archive.tar").touch()
    (user.home / "empty").mkdir()
    name = "oci: takes a directory; docker://docker.io/library/debian:12 names an image of a registry"
    expected = {
        "oci:empty:1": f"{user.home}/empty is not an OCI layout (no oci-layout file) [image-not-found]",
        "oci:debian:12": f"hint: {name}",
        "oci:archive.tar:1": "hint: that is a file; oci-archive:archive.tar:1 names a layout in a tar file",
        "oci-archive:layout": "hint: that is a directory; oci:layout names a layout in one",
    }
    for given, answer in expected.items():
        assert answer in run(user, "inspect", *AMD64, given).stderr, given


def test_the_store_is_named_by_an_absolute_path(user: Account) -> None:
    done = user.run([*HPCPOD, "image", "list"], env=PYTHON | {"HPCPOD_STORE": "store"})
    assert done.returncode == 125
    assert "image store store: not an absolute path [store-unusable]" in done.stderr
    assert not (user.home / "store").exists()


def test_an_empty_store_is_said(user: Account) -> None:
    done = run(user, "list")
    assert (done.stdout, done.stderr) == ("", f"hpcpod: no images in {user.store}\n")


def test_existing_destinations_are_left_alone(user: Account, reference: str) -> None:
    for name, make in (("dir", Path.mkdir), ("dangling", lambda path: path.symlink_to("nowhere"))):
        make(user.home / name)
        assert run(user, "unpack", *AMD64, reference, name).returncode == 125
    assert list((user.home / "dir").iterdir()) == []
    assert not (user.home / "nowhere").exists()


def test_units_of_max_bytes(user: Account, reference: str) -> None:
    cases = {
        "4k": 0,
        "1Ki": 125,
        "0": 125,
        "2GB": 0,
        "2560": 0,
        "2560B": 0,
        "4096": 0,
        "-1": 125,
        "1.5G": 125,
    }
    for number, (text, status) in enumerate(cases.items()):
        done = run(user, "unpack", *AMD64, "--max-bytes", text, reference, f"out{number}")
        assert done.returncode == status, (text, done.stderr)


@pytest.mark.needs("root", "plain")
@pytest.mark.parametrize("closed", ["", "index.json", "blobs"])
def test_an_image_that_only_its_owner_reads(user: Account, tmp_path: Path, closed: str) -> None:
    """As umoci writes it, run by root."""
    layout = user.home.parent / "by-root"
    write_layout(layout, GOOD)
    (layout / closed).chmod(0)
    done = run(user, "pull", *AMD64, f"oci:{layout}")
    assert done.returncode == 125 and "may not be read (EACCES) [image-not-found]" in done.stderr
    assert f"hint: its owner, uid 0, opens it to others: chmod -R a+rX {layout}" in done.stderr


def test_pull_prints_the_digest(user: Account, reference: str) -> None:
    done = run(user, "pull", *AMD64, reference)
    assert done.stdout == f"{digest(GOOD.blobs()[0])}\n"
    assert run(user, "pull", *AMD64, reference).stderr == ""


def test_inspect(user: Account, reference: str) -> None:
    facts = json.loads(run(user, "inspect", *AMD64, "--json", reference).stdout)
    assert facts["digest"] == digest(GOOD.blobs()[0])
    assert facts["cmd"] == ["/a"]
    assert facts["stored"] == ""
    assert "stored      -\n" in run(user, "inspect", *AMD64, reference).stdout
    run(user, "pull", *AMD64, reference)
    text = run(user, "inspect", *AMD64, reference).stdout
    assert f"stored      {user.store}/images/sha256-" in text
    assert "\x1b" not in text
    assert "labels      x=\\x1b[0m" in text


def test_max_bytes_stops_a_bomb(user: Account) -> None:
    size = 100 << 20
    layer = Layer(header(b"zeros", size=size), "zstd", end=bytes(size))
    path = write_layout(user.home / "large", Image([layer]))
    done = run(user, "unpack", *AMD64, "--max-bytes", "70M", f"oci:{path}", "out")
    assert done.returncode == 125
    assert done.stdout == ""
    assert "[image-limit]" in done.stderr


ENSURE = "ensure('{}', environment=os.environ, uid=os.getuid(), platform=parse_platform('linux/amd64'))"
FORBIDDEN = {
    "isal",
    "zstandard",
    "click",
    "subprocess",
    "tempfile",
    "asyncio",
    "ctypes",
    "threading",
    "hashlib",
}


def test_a_start_with_the_image_present_imports_little(user: Account, reference: str) -> None:
    script = (
        "import os, sys\n"
        "from hpcpod.images.stores.ensure import ensure\n"
        "from hpcpod.images.sources.platforms import parse_platform\n"
        f"{ENSURE.format(reference)}\n"
        "print(' '.join(sys.modules))"
    )
    run(user, "pull", *AMD64, reference)
    done = user.run([sys.executable, "-S", "-c", script], env=PYTHON, check=True)
    assert FORBIDDEN & set(done.stdout.split()) == set()


def test_a_start_with_the_image_present_opens_few_files(user: Account, reference: str) -> None:
    """Layout: index, mark, manifest; store: version, meta, config; five places of policies; no layer."""
    script = (
        "import os, sys\n"
        "from hpcpod.images.stores.ensure import ensure\n"
        "from hpcpod.images.sources.platforms import parse_platform\n"
        f"{ENSURE.format(reference)}\n"
        "opened = []\n"
        "sys.addaudithook(lambda name, words: opened.append(words[0]) if name == 'open' else None)\n"
        f"{ENSURE.format(reference)}\n"
        "print(len(opened), *opened)"
    )
    run(user, "pull", *AMD64, reference)
    done = user.run([sys.executable, "-S", "-c", script], env=PYTHON, check=True)
    count, *opened = done.stdout.split()
    assert int(count) <= 15, opened
