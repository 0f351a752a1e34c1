# SPDX-License-Identifier: Apache-2.0
"""kill -9 of root's mount, umount and removal at each state change; the next commands repair."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.integration.site.conftest import FORMS, Site, tiny
from tests.testbed.injector import Commands, build

pytestmark = pytest.mark.needs("root", "plain", "gcc", "kernel-images")

PACKED = FORMS[1:]
MOUNT = "image mount --lease=a --rootfs={form} {image}"


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("injector"))


@pytest.fixture
def commands(site: Site, library: Path) -> Iterator[Commands]:
    with Commands(site.account(0), site.base, library) as made:
        yield made


def nothing(_: Site, __: Callable[..., bool]) -> None:
    """The store is empty."""


def pulled(_: Site, run: Callable[..., bool]) -> None:
    run("image pull --site --rootfs={form} {image}")


def mounted(_: Site, run: Callable[..., bool]) -> None:
    run(MOUNT)


CASES = {
    "first mount": (nothing, MOUNT),
    "mount": (pulled, MOUNT),
    "second mount": (mounted, MOUNT),
    "umount": (mounted, "image umount --lease=a {image}"),
    "umount all": (mounted, "image umount --lease=a --all"),
    "rm": (pulled, "image rm --site {image}"),
    "gc": (pulled, "image gc --site --all"),
}


@pytest.mark.parametrize("form", PACKED)
@pytest.mark.parametrize("case", CASES)
def test_kill_at_each_change(site: Site, commands: Commands, case: str, form: str) -> None:
    """Then a lease means an image that can be mounted, and nothing is left when it has been released."""
    image = tiny(site, "one")
    before, words = CASES[case]

    def run(text: str, *rules: str) -> bool:
        filled = text.format(form=form, image=image).split()
        done = commands.run(filled, rules, env=site.environment())
        assert done.killed or not done.left, str(done)
        return done.killed or (done.check() is None)

    number = 0
    while True:
        number += 1
        before(site, run)
        if not run(words, f"changes:{number}:kill"):
            break
        run("image gc --site")  # leaves a lease: it is its job's
        assert set(site.leases()) <= set(site.entries())
        assert len(site.mounted()) == len(site.loops()) <= len(site.leases()) or form == "erofs"
        assert set(site.mounted()) <= set(site.leases())
        if number % 2:
            run("image mount --lease=b --rootfs={form} {image}")
            assert len(site.mounted()) == 1
            assert Path(site.runtime, "mounts", site.mounted()[0], "one-0").read_bytes() == b"one"
            run("image umount --lease=b --all")
        run("image umount --lease=a --all")
        run("image gc --site --all")
        site.assert_idle()
        assert site.entries() == []
    assert number > 3
