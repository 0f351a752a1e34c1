# SPDX-License-Identifier: Apache-2.0
"""What a name of a registry means, when it is asked again, and that a start needs no network."""

from __future__ import annotations

import os

import pytest

from tests.integration.admission.conftest import Shelf, Starter

pytestmark = pytest.mark.needs("native", "userns", "registry")


def pull(starter: Starter, shelf: Shelf, *options: str) -> str:
    done = starter.hpcpod("image", "pull", "--insecure-options=http", *options, shelf.reference)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_name_is_asked_once(shelf: Shelf, starter: Starter) -> None:
    assert starter.version(shelf.reference) == "one"
    shelf.stop()
    assert starter.version(shelf.reference) == "one"
    # Another plan of the same image, and a spelling that means the same.
    assert starter.version(shelf.reference, "--env=A=1") == "one"
    assert starter.version(shelf.name + ":1", "--pull=never") == "one"


def test_a_tag_that_moves_is_noticed_by_a_pull(shelf: Shelf, starter: Starter) -> None:
    first = pull(starter, shelf)
    assert starter.version(shelf.reference) == "one"
    shelf.put("two")
    assert starter.version(shelf.reference) == "one"
    assert pull(starter, shelf, "--pull=missing") == first
    assert pull(starter, shelf) != first
    assert starter.version(shelf.reference) == "two"
    # What a pinned digest means does not move.
    assert starter.version(f"docker://{shelf.name}@{first}") == "one"


def test_always_asks_always(shelf: Shelf, starter: Starter) -> None:
    versions = []
    for version in ("one", "two", "one", "two"):
        shelf.put(version)
        versions.append(starter.version(shelf.reference, "--pull=always"))
    assert versions == ["one", "two", "one", "two"]
    shelf.stop()
    starter.refused(shelf.reference, "--pull=always", slug="registry-failed")
    assert starter.version(shelf.reference) == "two"


def test_never_asks_nobody(shelf: Shelf, starter: Starter) -> None:
    message = starter.refused(shelf.reference, "--pull=never", slug="image-not-found")
    assert "no registry is to be asked" in message and "--pull=missing" in message
    pull(starter, shelf)
    shelf.stop()
    assert starter.version(shelf.reference, "--pull=never") == "one"
    digest = starter.hpcpod("image", "pull", "--pull=never", shelf.reference).stdout.strip()
    assert digest.startswith("sha256:")


def test_an_image_is_named_by_what_its_name_meant(shelf: Shelf, starter: Starter) -> None:
    digest = pull(starter, shelf)
    shelf.stop()
    assert f"digest      {digest}" in starter.hpcpod("image", "why", shelf.reference).stdout
    assert starter.hpcpod("image", "rm", shelf.reference).stdout.strip() == digest
    assert "not in the store" in starter.hpcpod("image", "rm", shelf.reference).stderr
    starter.refused(shelf.reference, "--pull=never", slug="image-not-found")
    starter.hpcpod("image", "gc")
    assert os.listdir(starter.account.store / "names") == []


@pytest.mark.parametrize("damage", [b"", b"{}", b"[]", b"\xff", b'{"version": 1, "digest": "x"}'])
def test_a_damaged_name_is_asked_anew(shelf: Shelf, starter: Starter, damage: bytes) -> None:
    pull(starter, shelf)
    (path,) = (starter.account.store / "names").iterdir()
    path.write_bytes(damage)
    assert starter.version(shelf.reference) == "one"
    shelf.stop()
    assert starter.version(shelf.reference, "--env=A=1") == "one"


def test_a_start_says_once_that_nobody_has_a_policy(shelf: Shelf, starter: Starter) -> None:
    # Where a distribution's policy.json accepts everything nobody has decided anything either.
    first, second = starter.run(shelf.reference), starter.run(shelf.reference, "--env=A=1")
    assert first.stdout == second.stdout == "ID=one\n"
    assert "accepted on their digest alone" in first.stderr
    assert second.stderr == ""


def test_blobs_do_not_stay(shelf: Shelf, starter: Starter) -> None:
    pull(starter, shelf)
    assert [path for path in (starter.account.store / "tmp").rglob("*") if path.is_file()] == []
