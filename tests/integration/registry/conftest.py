# SPDX-License-Identifier: Apache-2.0
"""Registries, and what is in them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.testbed.authority import Authority
from tests.testbed.layouts import Layer, digest, directory, file, image, symlink, write_layout
from tests.testbed.pulls import Puller
from tests.testbed.registry import Registry, write_home

SEED = 7


def content() -> dict[str, bytes]:
    """Files of the image, by name; the large one does not compress."""
    return {
        "bin/tool": b"#!/bin/sh\n" * 100,
        "large": random.Random(SEED).randbytes(3_000_000),
        "etc/os": b"tests\n",
    }


TREE = {**content(), "sh": b"bin/tool"}
"""The image's tree, as tree_of() has it."""
MIDDLE = file(b"large", content()["large"])
LARGE = f"/blobs/{digest(Layer(MIDDLE).packed)}"
"""In the path of the large layer of the image ``gzip``."""


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="session")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images by tags: of gzip, zstd and uncompressed layers."""
    files = content()
    lower = directory(b"bin") + file(b"bin/tool", files["bin/tool"], mode=0o755) + file(b"gone", b"x")
    upper = (
        directory(b"etc") + file(b"etc/os", files["etc/os"]) + symlink(b"sh", b"bin/tool") + file(b".wh.gone")
    )
    images = {name: image(lower, MIDDLE, upper, compression=name) for name in ("gzip", "zstd", "none")}
    return write_layout(tmp_path_factory.mktemp("layouts") / "layout", images)


@pytest.fixture(scope="session")
def plain_registry(
    tmp_path_factory: pytest.TempPathFactory, authority: Authority, layout: Path
) -> Iterator[Registry]:
    """Without TLS and authentication: what proxies stand before."""
    with Registry(tmp_path_factory.mktemp("plain") / "registry", authority, tls=False) as registry:
        registry.push(layout, "a/image:1", tag="gzip")
        yield registry


@pytest.fixture
def puller(tmp_path: Path) -> Puller:
    """Pulls as a library, with a home and directories of its own."""
    return Puller(tmp_path)


def log_in(puller: Puller, registry: Registry, *, login: bool = True) -> None:
    hosts = [registry.host] + ([registry.tokens.host] if registry.tokens else [])
    write_home(puller.home, registry.authority, *hosts, login=login)


def conf(puller: Puller, text: str) -> None:
    path = puller.home / ".config/containers/registries.conf"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
