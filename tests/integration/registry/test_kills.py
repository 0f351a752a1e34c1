# SPDX-License-Identifier: Apache-2.0
"""A pull that is killed leaves what it fetched; the next goes on with it, and removes all."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpcpod.images.sources.registry.blobs import sweep_blobs
from tests.conftest import PACKAGES, ROOT
from tests.integration.registry.conftest import LARGE, TREE
from tests.testbed import faulty as do
from tests.testbed.authority import Authority
from tests.testbed.faulty import Faulty
from tests.testbed.pulls import AMD64, Puller, Told, tree_of
from tests.testbed.registry import Registry, write_home

pytestmark = pytest.mark.needs("registry")

HALF = 1_500_000
SCRIPT = """
import sys
from pathlib import Path
from tests.testbed.pulls import Puller
pulled = Puller(Path(sys.argv[1])).pull(sys.argv[2])
sys.exit(0 if pulled.tree else str(pulled.error))
"""


@pytest.fixture
def proxy(authority: Authority, plain_registry: Registry, puller: Puller) -> Iterator[Faulty]:
    with Faulty(plain_registry.host, authority.server("killed")) as server:
        write_home(puller.home, authority, server.host)
        yield server


def start(puller: Puller, reference: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-P", "-c", SCRIPT, str(puller.directory), reference],
        env={**os.environ, "PYTHONPATH": f"{PACKAGES}:{ROOT}"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for(puller: Puller, size: int) -> None:
    until = time.monotonic() + 30
    while time.monotonic() < until and size not in puller.kept().values():
        time.sleep(0.02)
    assert size in puller.kept().values(), puller.kept()


def test_killed_pull_is_gone_on_with(proxy: Faulty, puller: Puller) -> None:
    reference = f"docker://{proxy.host}/a/image:1"
    proxy.do(LARGE, do.stall(HALF), 1)
    with start(puller, reference) as process:
        wait_for(puller, HALF)
        process.send_signal(signal.SIGKILL)
    for path in puller.directory.glob("out-*"):
        path.rename(puller.directory / "of-the-dead")
    proxy.asked.clear()
    pulled = puller.pull(reference)
    assert pulled.tree == TREE, pulled.error
    (large,) = [asked for asked in proxy.asked if asked.path.endswith(LARGE)]
    assert large.headers["range"].startswith(f"bytes={HALF}-")
    assert puller.kept() == {}


def test_two_pulls_at_once_take_nothing_from_each_other(proxy: Faulty, puller: Puller) -> None:
    """What a living process writes is left to it."""
    reference = f"docker://{proxy.host}/a/image:1"
    proxy.do(LARGE, do.stall(HALF), 1)
    with start(puller, reference) as process:
        wait_for(puller, HALF)
        puller.count = 5  # another directory than the other process's
        assert puller.pull(reference).tree == TREE
        said, _ = process.communicate(timeout=60)
    assert process.returncode == 0, said


def test_without_a_directory_for_blobs(proxy: Faulty, puller: Puller, tmp_path: Path) -> None:
    """They wait beside the tree, and go with the pull, whether it fails or not."""
    parent = tmp_path / "embryo"
    for fails in (True, False):
        proxy.rules.clear()
        if fails:
            proxy.do(LARGE, do.status(404))
        out = parent / f"out-{fails}"
        out.mkdir(parents=True)
        with puller.source(f"docker://{proxy.host}/a/image:1", Told(), blobs="") as source:
            source.describe(AMD64)
            if fails:
                with pytest.raises(Exception, match="not there"):
                    source.unpack(str(out), Told())
            else:
                source.unpack(str(out), Told())
                assert tree_of(out) == TREE
        assert sorted(path.name for path in parent.iterdir() if path.name.startswith("blobs")) == []


def test_blobs_that_nobody_came_back_for_go(tmp_path: Path) -> None:
    names = [f"sha256-{digit * 64}" for digit in "012"] + ["sha256-short", "other"]
    for name in names:
        (tmp_path / name).write_bytes(b"x")
    week = time.time() - 8 * 86400
    for name in (names[0], names[3], names[4]):
        os.utime(tmp_path / name, (week, week))
    assert sweep_blobs(str(tmp_path)) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names[1:])
