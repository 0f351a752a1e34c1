# SPDX-License-Identifier: Apache-2.0
"""Every fault of a registry ends in the image or in one clear line, in bounded time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from hpcpod.errors import (
    HpcpodError,
    ImageDigestMismatch,
    ImageInvalid,
    ImageLimitExceeded,
    ImageNotFound,
    ImageUnsupported,
    RegistryDenied,
    RegistryFailed,
)
from tests.integration.registry.conftest import LARGE, content
from tests.testbed import faulty as do
from tests.testbed.authority import Authority
from tests.testbed.faulty import BLOBS, MANIFESTS, Fault, Faulty
from tests.testbed.layouts import digest
from tests.testbed.pulls import Pulled, Puller
from tests.testbed.registry import PASSWORD, Registry, write_home
from tests.testbed.webserver import Answer, Asked

pytestmark = pytest.mark.needs("registry")

SECONDS = 20.0
"""No fault may take longer; most take a second."""
OTHER = digest(b"another")


@pytest.fixture
def proxy(authority: Authority, plain_registry: Registry, puller: Puller) -> Iterator[Faulty]:
    with Faulty(plain_registry.host, authority.server("faulty")) as server:
        write_home(puller.home, authority, server.host)
        yield server


def check_image(pulled: Pulled, puller: Puller) -> None:
    assert pulled.error is None, pulled.error
    assert pulled.tree == {**content(), "sh": b"bin/tool"}
    assert puller.kept() == {}
    assert pulled.seconds < SECONDS


def check_line(error: HpcpodError | None, kind: type[HpcpodError], *words: str) -> None:
    """One line that a terminal can show, and that says no secret."""
    assert type(error) is kind, error
    assert error is not None
    lines = error.lines().splitlines()
    assert len(lines) <= 2 and all(line.isprintable() for line in lines), lines
    assert len(error.message) < 1000
    for word in words:
        assert word in error.message, error.message
    assert PASSWORD not in error.lines()


PASSING: dict[str, tuple[str, Fault, int]] = {
    "429 once": (MANIFESTS, do.status(429), 1),
    "429 that says when": (MANIFESTS, do.status(429, {"Retry-After": "1"}), 1),
    "503 that says when, by a date": (LARGE, do.retry_date(1), 1),
    "500 twice": (LARGE, do.status(500), 2),
    "502 with a page": (MANIFESTS, do.html(502), 1),
    "no answer": (MANIFESTS, do.hang_up, 1),
    "not HTTP": (MANIFESTS, do.noise, 1),
    "silence": (MANIFESTS, do.silent, 1),
    "a head that drips": (MANIFESTS, do.dripping_head, 1),
    "a document that drips": (MANIFESTS, do.dripping_body, 1),
    "a document cut": (MANIFESTS, do.cut(10), 1),
    "a length that lies": (MANIFESTS, do.lying_length, 1),
    "a blob without answer": (LARGE, do.hang_up, 2),
    "a blob cut": (LARGE, do.cut(200_000), 2),
    "a blob cut at once": (LARGE, do.cut(0), 2),
    "a blob stalls": (LARGE, do.stall(200_000), 1),
    "a blob without end": (LARGE, do.endless, 9),  # what was promised of it is right
    "a blob drips": (LARGE, do.dripping_body, 1),
}


@pytest.mark.parametrize("name", PASSING)
def test_fault_that_passes(name: str, proxy: Faulty, puller: Puller) -> None:
    proxy.do(*PASSING[name])
    check_image(puller.pull(f"docker://{proxy.host}/a/image:1"), puller)


SCHEMA_1 = b'{"schemaVersion": 1, "fsLayers": [], "history": []}'
STAYING: dict[str, tuple[str, Fault, type[HpcpodError], str]] = {
    "429": (MANIFESTS, do.status(429), RegistryFailed, "429, TOOMANYREQUESTS: \\x1b[31mno\\n (3 tries)"),
    "429 for an hour": (MANIFESTS, do.status(429, {"Retry-After": "3600"}), RegistryFailed, "3600 s"),
    "500": (MANIFESTS, do.status(500), RegistryFailed, "500"),
    "501": (MANIFESTS, do.status(501), RegistryFailed, "501"),
    "403": (MANIFESTS, do.status(403), RegistryDenied, "403"),
    "404 with a page": (MANIFESTS, do.html(404), RegistryFailed, "a page of HTML"),
    "200 with a page": (MANIFESTS, do.html(200), RegistryFailed, "a page of HTML"),
    "418": (MANIFESTS, do.status(418), RegistryFailed, "418"),
    "no answer": (MANIFESTS, do.hang_up, RegistryFailed, "3 tries"),
    "silence": (MANIFESTS, do.silent, RegistryFailed, "silent for 1 s (3 tries)"),
    "a head that drips": (MANIFESTS, do.dripping_head, RegistryFailed, "no complete head of an answer"),
    "a document that drips": (MANIFESTS, do.dripping_body, RegistryFailed, "not complete after 2 s"),
    "a document that ends early": (MANIFESTS, do.cut(10), RegistryFailed, "connection"),
    "not HTTP": (MANIFESTS, do.noise, RegistryFailed, "not HTTP"),
    "a document without end": (MANIFESTS, do.endless, ImageLimitExceeded, "answers more than"),
    "a length that lies": (MANIFESTS, do.lying_length, RegistryFailed, "connection"),
    "a manifest that is another": (MANIFESTS, do.flipped, ImageDigestMismatch, "expected sha256:"),
    "a manifest that is longer": (MANIFESTS, do.longer, ImageDigestMismatch, "expected sha256:"),
    "a digest in the head that is another": (MANIFESTS, do.with_digest(OTHER), ImageDigestMismatch, OTHER),
    "a digest in the head that is none": (MANIFESTS, do.with_digest("md5:1"), RegistryFailed, "md5:1"),
    "schema 1 by its type": (
        MANIFESTS,
        do.body(SCHEMA_1, "application/vnd.docker.distribution.manifest.v1+prettyjws"),
        ImageUnsupported,
        "schema 1",
    ),
    "schema 1 without a type": (
        MANIFESTS,
        do.body(SCHEMA_1, "application/json"),
        ImageUnsupported,
        "schema 1",
    ),
    "a type of something else": (MANIFESTS, do.typed("image/png"), RegistryFailed, "image/png"),
    "a type that the document contradicts": (
        MANIFESTS,
        do.typed("application/vnd.oci.image.index.v1+json"),
        ImageInvalid,
        "mediaType",
    ),
    "a manifest that is no JSON": (MANIFESTS, do.body(b"{", "application/json"), ImageInvalid, "JSON"),
    "encoded": (MANIFESTS, do.encoded, RegistryFailed, "gzip"),
    "a way round": (MANIFESTS, do.redirect_to_itself, RegistryFailed, "redirects more than 5 times"),
    "a way to nowhere": (MANIFESTS, do.redirect("ftp://x"), RegistryFailed, "no http:// or https://"),
    "a way without TLS": (MANIFESTS, do.redirect("http://127.0.0.1:1"), RegistryFailed, "without TLS"),
    "a blob missing": (LARGE, do.status(404), ImageNotFound, "not there"),
    "a blob 500": (LARGE, do.status(500), RegistryFailed, "500"),
    "a blob that stalls": (LARGE, do.stall(0), RegistryFailed, "silent for 1 s"),
    "a blob that drips": (LARGE, do.dripping_body, RegistryFailed, "1000 bytes a second"),
    "a blob that is longer": (LARGE, do.longer, ImageDigestMismatch, "bytes, expected"),
    "a blob that is shorter": (LARGE, do.shorter, ImageDigestMismatch, "bytes, expected"),
    "a blob that is another": (LARGE, do.flipped, ImageDigestMismatch, "has digest"),
    "a blob that is encoded": (LARGE, do.encoded, RegistryFailed, "encode"),
    "a configuration missing": (BLOBS, do.status(404), ImageNotFound, "not there"),
    "a configuration that is longer": (BLOBS, do.longer, ImageDigestMismatch, "bytes, expected"),
    "a configuration without end": (BLOBS, do.endless, ImageDigestMismatch, "answers more than"),
    "a configuration that is another": (BLOBS, do.flipped, ImageDigestMismatch, "has digest"),
    "a configuration that is a page": (BLOBS, do.html(200), ImageDigestMismatch, "digest"),
    "an unknown way to log in": (
        MANIFESTS,
        do.unauthorized('Negotiate, Digest realm="x"'),
        RegistryDenied,
        "digest",
    ),
    "credentials refused": (MANIFESTS, do.unauthorized('Basic realm="x"'), RegistryDenied, "does not accept"),
    "a token server without TLS": (
        MANIFESTS,
        do.unauthorized('Bearer realm="http://127.0.0.1:1/token"'),
        RegistryDenied,
        "no https:// address",
    ),
    "a token server that is not there": (
        MANIFESTS,
        do.unauthorized('Bearer realm="https://127.0.0.1:1/token"'),
        RegistryFailed,
        "token server 127.0.0.1: connection refused",
    ),
}


@pytest.mark.parametrize("name", STAYING)
def test_fault_that_stays(name: str, proxy: Faulty, puller: Puller) -> None:
    part, fault, kind, words = STAYING[name]
    proxy.do(part, fault)
    pulled = puller.pull(f"docker://{proxy.host}/a/image:1")
    check_line(pulled.error, kind, words, f"{proxy.host}/a/image:1")
    assert pulled.seconds < SECONDS


@pytest.mark.parametrize("name", STAYING)
def test_next_place_is_tried(
    name: str, proxy: Faulty, puller: Puller, authority: Authority, plain_registry: Registry
) -> None:
    part, fault, kind, words = STAYING[name]
    proxy.do(part, fault)
    with Faulty(plain_registry.host, authority.server("second")) as second:
        write_home(puller.home, authority, proxy.host, second.host)
        mirrored(puller, second.host, proxy.host)
        pulled = puller.pull(f"docker://{second.host}/a/image:1")
        if name == "a type that the document contradicts":
            # What a mirror says about a tag counts: nobody can know that it is wrong.
            check_line(pulled.error, kind, words)
        else:
            check_image(pulled, puller)


def mirrored(puller: Puller, host: str, *mirrors: str) -> None:
    path = puller.home / ".config/containers/registries.conf"
    tables = "".join(f'[[registry.mirror]]\nlocation = "{mirror}"\n' for mirror in mirrors)
    path.write_text(f'[[registry]]\nlocation = "{host}"\n{tables}')


def test_all_places_are_named(
    proxy: Faulty, puller: Puller, authority: Authority, plain_registry: Registry
) -> None:
    proxy.do(MANIFESTS, do.status(500))
    with Faulty(plain_registry.host, authority.server("second")) as second:
        second.do(MANIFESTS, do.status(403))
        write_home(puller.home, authority, proxy.host, second.host)
        mirrored(puller, second.host, "127.0.0.1:1", proxy.host)
        error = puller.pull(f"docker://{second.host}/a/image:1").error
        check_line(error, RegistryDenied, f"mirror {proxy.host}: answers 500", f"{second.host}: answers 403")
        check_line(error, RegistryDenied, "mirror 127.0.0.1:1: connection refused (ECONNREFUSED)")


# --------------------------------------------------------------------------- what is kept


def test_cut_blob_is_gone_on_with(proxy: Faulty, puller: Puller) -> None:
    proxy.do(LARGE, do.cut(1_500_000), 1)
    check_image(puller.pull(f"docker://{proxy.host}/a/image:1"), puller)
    ranges = [asked.headers["range"] for asked in proxy.asked if "range" in asked.headers]
    assert ranges and all(text.startswith("bytes=1500000-") for text in ranges)


@pytest.mark.parametrize("kind", ["ranges", "no ranges", "wrong ranges"])
def test_failed_pull_is_gone_on_with(kind: str, proxy: Faulty, puller: Puller) -> None:
    proxy.do(LARGE, do.cut(900_000))
    reference = f"docker://{proxy.host}/a/image:1"
    assert type(puller.pull(reference).error) is RegistryFailed
    left = puller.kept()
    assert max(left.values()) >= 900_000
    proxy.rules.clear()
    proxy.ranges = kind != "no ranges"
    if kind == "wrong ranges":
        proxy.do(BLOBS, do.wrong_range)
    proxy.asked.clear()
    release_makers(puller.blobs)
    check_image(puller.pull(reference), puller)
    assert any("range" in asked.headers for asked in proxy.asked)
    assert proxy.count(BLOBS) == (3 if kind == "wrong ranges" else 2)  # the large layer, the configuration


def release_makers(blobs: Path) -> None:
    """Let the files look as if their maker, this process, were dead."""
    for path in blobs.iterdir():
        name, part, maker = path.name.partition(".part-")
        if part:
            words = maker.split("-")
            path.rename(blobs / f"{name}{part}{'-'.join([*words[:4], '1', words[5]])}")


def test_kept_blob_that_is_wrong_is_fetched_again(proxy: Faulty, puller: Puller) -> None:
    proxy.do(LARGE, do.cut(900_000))
    reference = f"docker://{proxy.host}/a/image:1"
    assert puller.pull(reference).error
    proxy.rules.clear()
    release_makers(puller.blobs)
    for path in puller.blobs.iterdir():
        path.write_bytes(bytes(path.stat().st_size))
    check_image(puller.pull(reference), puller)


def test_credentials_go_nowhere_else(
    proxy: Faulty, puller: Puller, authority: Authority, plain_registry: Registry
) -> None:
    with Faulty(plain_registry.host, authority.server("elsewhere")) as elsewhere:
        write_home(puller.home, authority, proxy.host, elsewhere.host)
        proxy.do(
            "",
            lambda asked, good: (
                do.redirect(elsewhere.url)(asked, good)
                if logged_in(asked)
                else do.unauthorized('Basic realm="x"')(asked, good)
            ),
        )
        check_image(puller.pull(f"docker://{proxy.host}/a/image:1"), puller)
        assert elsewhere.asked
        assert not [asked for asked in elsewhere.asked if "authorization" in asked.headers]
        assert any("authorization" in asked.headers for asked in proxy.asked)


def logged_in(asked: Asked) -> bool:
    return "authorization" in asked.headers


def test_redirect_there_and_back_shows_nothing(
    proxy: Faulty, puller: Puller, authority: Authority, plain_registry: Registry
) -> None:
    """A host that is redirected to cannot make the registry's credentials do something for it."""
    with Faulty(plain_registry.host, authority.server("elsewhere")) as elsewhere:
        write_home(puller.home, authority, proxy.host, elsewhere.host)
        elsewhere.do("", do.redirect(f"{proxy.url}/back"))
        proxy.do("/back", lambda asked, good: Answer(404))
        proxy.do(
            "",
            lambda asked, good: (
                do.redirect(elsewhere.url)(asked, good)
                if logged_in(asked)
                else do.unauthorized('Basic realm="x"')(asked, good)
            ),
        )
        assert puller.pull(f"docker://{proxy.host}/a/image:1").error
        back = [asked for asked in proxy.asked if asked.path.startswith("/back")]
        assert back and not any(map(logged_in, back))
