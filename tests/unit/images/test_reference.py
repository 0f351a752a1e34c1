# SPDX-License-Identifier: Apache-2.0
"""References, digests and platforms as users write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcpod.errors import HpcpodError, ImageReferenceError
from hpcpod.images.sources.platforms import fits, parse_platform, platform_of
from hpcpod.images.sources.reference import Reference, is_digest, parse_reference
from hpcpod.model import Platform

DIGEST = "sha256:" + "0123456789abcdef" * 4
LONG = "sha512:" + "0123456789abcdef" * 8

GOOD = {
    "oci:dir": Reference("oci", "dir"),
    "oci:/a b/c:tag": Reference("oci", "/a b/c", "tag"),
    "oci:.:1.2-3_x": Reference("oci", ".", "1.2-3_x"),
    "oci:d:docker.io/library/debian:12": Reference("oci", "d", "docker.io/library/debian:12"),
    f"oci:d@{DIGEST}": Reference("oci", "d", "", DIGEST),
    f"oci:d:t@{LONG}": Reference("oci", "d", "t", LONG),
    "oci:/home/me@site/d": Reference("oci", "/home/me@site/d"),
    "oci:/home/me@site/d:t": Reference("oci", "/home/me@site/d", "t"),
    f"oci:me@site@{DIGEST}": Reference("oci", "me@site", "", DIGEST),
    "oci-archive:a.tar": Reference("oci-archive", "a.tar"),
    "oci-archive:../a.tar:t": Reference("oci-archive", "../a.tar", "t"),
    "aci:a.aci": Reference("aci", "a.aci"),
    "aci:me@site/a:1.aci": Reference("aci", "me@site/a:1.aci"),
    f"aci:a@{LONG}": Reference("aci", "a", "", LONG),
    "sif:a.sif": Reference("sif", "a.sif"),
    f"sif:a.sif@{DIGEST}": Reference("sif", "a.sif", "", DIGEST),
    "sqsh:a:b.sqsh": Reference("sqsh", "a:b.sqsh"),
    "erofs:a.erofs": Reference("erofs", "a.erofs"),
    "dir:/a b": Reference("dir", "/a b"),
    "docker-archive:a.tar": Reference("docker-archive", "a.tar"),
    "docker-archive:a.tar:me/solver:1": Reference("docker-archive", "a.tar", "me/solver:1"),
    "docker-archive:a.tar:@1": Reference("docker-archive", "a.tar", "@1"),
    "docker://docker.io/library/debian:12": Reference("docker", "docker.io/library/debian", "12"),
    "docker://[::1]:5000/a/b-c__d.e": Reference("docker", "[::1]:5000/a/b-c__d.e"),
    f"docker://localhost/a:1@{DIGEST}": Reference("docker", "localhost/a", "1", DIGEST),
    "debian": Reference("docker", "debian", short=True),
    "d:t": Reference("docker", "d", "t", short=True),
    f"me/solver@{DIGEST}": Reference("docker", "me/solver", "", DIGEST, short=True),
}

BAD = [
    "",
    ":",
    "oci",
    "oci:",
    "oci::tag",
    "oci:d:",
    "oci:d:-x",
    "oci:d:a b",
    "oci:d:" + "x" * 256,
    "oci:d\0",
    "OCI:d",
    "./d",
    "/d",
    "/images/a.sif",
    "docker:debian",
    "docker://",
    "docker://Debian",
    "docker://h:0/a",
    "docker://h:70000/a",
    "docker://h.x/a//b",
    "docker://h.x/a:",
    "docker://h.x/a:-x",
    "docker://h.x/a:" + "x" * 129,
    "docker://h.x/" + "a" * 256,
    "docker://h.x/a___b",
    "docker://-h.x/a",
    "docker://h.x/a@",
    "docker://h.x/a@sha256:0",
    "docker-archive:a.tar:Me",
    "docker-archive:a.tar:@x",
    "docker-daemon:solver:1",
    "library://x/y/z",
    "dir:",
    "a b",
    "oci-archive",
    "oci:d@sha256:0",
    f"oci:d@{DIGEST}0",
    f"oci:d@{DIGEST}\n",
    f"oci:d@{DIGEST.upper()}",
    "oci:d@md5:d41d8cd98f00b204e9800998ecf8427e",
    "aci:",
    "aci:a\0",
    f"aci:@{LONG}",
    f"aci:a@{DIGEST}",
    "aci:a@sha512-0",
    "sif:",
    f"sif:a@{LONG}",
    f"sif:a@{DIGEST}0",
]


@pytest.mark.parametrize("text", GOOD)
def test_good_references(text: str) -> None:
    assert parse_reference(text) == GOOD[text]
    assert str(GOOD[text]) == text


def test_an_image_id_is_written_as_appc_does() -> None:
    assert parse_reference(f"aci:a@{LONG.replace(':', '-')}") == Reference("aci", "a", "", LONG)


@pytest.mark.parametrize("text", BAD)
def test_bad_references(text: str) -> None:
    with pytest.raises(ImageReferenceError) as caught:
        parse_reference(text)
    assert caught.value.hint
    assert caught.value.message.isprintable()


@given(st.text(max_size=60))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    for candidate in (text, f"oci:{text}"):
        try:
            parsed = parse_reference(candidate)
            # A name of a registry is completed; the complete one is itself.
            assert parse_reference(str(parsed)) == parsed
            assert parsed.transport == "docker" or str(parsed) == candidate
        except HpcpodError as error:
            assert error.message.isprintable()


def test_supported_transports_are_named() -> None:
    with pytest.raises(ImageReferenceError) as caught:
        parse_reference("docker-daemon:debian:12")
    assert "oci:DIRECTORY" in str(caught.value.hint)
    assert "skopeo copy docker-daemon:debian:12 " in str(caught.value.hint)


@pytest.mark.parametrize(
    ("text", "full"),
    [
        ("docker://debian:12", "docker://docker.io/library/debian:12"),
        ("docker://me/solver", "docker://docker.io/me/solver"),
        ("docker://index.docker.io/debian", "docker://docker.io/library/debian"),
        ("docker.io/debian", "docker://docker.io/library/debian"),
        ("ghcr.io/me/solver:1", "docker://ghcr.io/me/solver:1"),
        ("localhost:5000/solver", "docker://localhost:5000/solver"),
    ],
)
def test_names_of_registries_are_completed(text: str, full: str) -> None:
    assert str(parse_reference(text)) == full
    assert parse_reference(full) == parse_reference(text)


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("LOCALHOST:5000/a", "localhost:5000"),
        ("docker://H.Example:0443/a", "h.example:443"),
        ("[::1]:80/a", "[::1]:80"),
    ],
)
def test_a_host_has_one_spelling(text: str, host: str) -> None:
    """A rule for it holds however it is written."""
    assert parse_reference(text).path == f"{host}/a"


@pytest.mark.parametrize("text", ["docker://me:s3cret@h.example/a", "me:s3cret@h.example/a:1"])
def test_a_secret_in_a_reference_is_not_repeated(text: str) -> None:
    with pytest.raises(ImageReferenceError) as caught:
        parse_reference(text)
    assert "s3cret" not in caught.value.lines()
    assert "podman login" in str(caught.value.hint)


@pytest.mark.parametrize("text", ["./image.sif", "/sw/image.sqsh", "~/image.aci"])
def test_a_path_alone_is_answered_with_its_transport(text: str) -> None:
    with pytest.raises(ImageReferenceError) as caught:
        parse_reference(text)
    assert str(caught.value.hint).startswith(f"write {text.rpartition('.')[2]}:")


def test_digests() -> None:
    assert is_digest(DIGEST)
    assert is_digest(LONG)
    assert not any(is_digest(bad) for bad in (DIGEST + "\n", DIGEST[:-1], "sha256:" + "../" * 21 + "x", ""))


def test_machines() -> None:
    assert platform_of("x86_64") == Platform("linux", "amd64")
    assert platform_of("aarch64") == Platform("linux", "arm64")
    assert str(platform_of("armv7l")) == "linux/arm/v7"
    assert platform_of("vax") == Platform("linux", "vax")


@pytest.mark.parametrize(
    "text", ["", "linux", "linux/", "/amd64", "a/b/c/d", "linux/am d64", "linux/amd64\n"]
)
def test_bad_platforms(text: str) -> None:
    with pytest.raises(ImageReferenceError):
        parse_platform(text)


@pytest.mark.parametrize(
    ("offered", "wanted", "expected"),
    [
        ("linux/amd64", "linux/amd64", True),
        ("linux/amd64/v1", "linux/amd64", True),
        ("linux/amd64/v3", "linux/amd64", False),
        ("linux/amd64/v3", "linux/amd64/v3", True),
        ("linux/amd64", "linux/amd64/v3", True),
        ("linux/arm64/v8", "linux/arm64", True),
        ("linux/arm/v6", "linux/arm/v7", True),
        ("linux/arm/v7", "linux/arm/v6", False),
        ("linux/arm64", "linux/amd64", False),
        ("windows/amd64", "linux/amd64", False),
    ],
)
def test_fits(offered: str, wanted: str, expected: bool) -> None:
    assert fits(parse_platform(offered), parse_platform(wanted)) is expected
