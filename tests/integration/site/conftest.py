# SPDX-License-Identifier: Apache-2.0
"""A site's store for each test: filled by root, used by plain users, described by a hpcpod.toml."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from hpcpod.images.stores.seal import opened, sealed
from tests import needs
from tests.conftest import PACKAGES, Account, remove_tree
from tests.integration.pod.image import small_tree, write_layout
from tests.integration.pod.packed import end
from tests.testbed import layouts

ACCOUNT = 65433
"""Who unpacks into the store; needs no passwd entry."""
FIRST_USER = 1101
FORMS = ("dir", "squashfs", "erofs")


def mount_points() -> set[str]:
    """Of this mount namespace, with their file systems' types."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return {f"{line.split()[4]} {line.partition(' - ')[2].split()[0]}" for line in lines}


def loop_files() -> list[str]:
    """Files below loop devices."""
    found = []
    for path in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):  # freed meanwhile
            found.append(path.read_text().strip())
    return found


@dataclass
class Site:
    """The store, its configuration, and the accounts that use it.

    base: on disk, with the store, the images' layouts and each user's own things.  memory: on tmpfs.
    """

    base: Path
    memory: Path
    text: str = ""
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def store(self) -> Path:
        return self.base / "site"

    @property
    def runtime(self) -> Path:
        return self.memory / "site"

    @property
    def config(self) -> Path:
        return self.base / "hpcpod.toml"

    def configure(self, text: str = "", **site: str | int) -> None:
        """Write the configuration: more tables, and more keys of [site]."""
        keys = {"store": str(self.store), "run": str(self.runtime), "account": str(ACCOUNT), **site}
        rows = [f"{name} = {json.dumps(value)}" for name, value in keys.items()]
        if "[trust]" not in text:  # these tests are not about who signs
            text += f'\n[trust]\npolicy = "{self.policy({"type": "insecureAcceptAnything"})}"'
        self.config.write_text("\n".join(["[site]", *rows, text, ""]))
        self.config.chmod(0o644)

    def policy(self, *requirements: dict[str, Any], name: str = "policy.json") -> Path:
        """Write a policy of the site's."""
        path = self.base / name
        path.write_text(json.dumps({"default": list(requirements)}))
        path.chmod(0o644)
        return path

    def account(self, uid: int) -> Account:
        """A user with a store and a run-time directory of its own below ours."""
        on_disk, in_memory = self.base / f"u{uid}", self.memory / f"u{uid}"
        for path in (on_disk, on_disk / "home", in_memory):
            path.mkdir(exist_ok=True)
            os.chown(path, uid, uid)
        return Account(uid, on_disk / "home", on_disk / "store", in_memory / "runtime")

    def environment(self) -> dict[str, str]:
        return {"HPCPOD_CONFIG": str(self.config), "PYTHONPATH": PACKAGES}

    def hpcpod(
        self, *words: str | Path, uid: int = 0, env: Mapping[str, str] | None = None, **more: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run ``hpcpod WORDS`` as root, or another user, by the interpreter of the tests."""
        command = [sys.executable, "-P", "-m", "hpcpod", *map(str, words)]
        return self.account(uid).run(command, env={**self.environment(), **(env or {})}, **more)

    def out(self, *words: str | Path, **more: Any) -> str:
        """Its output; it must succeed."""
        done = self.hpcpod(*words, **more)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def refused(self, *words: str | Path, slug: str, **more: Any) -> str:
        """Its message: one line, and a hint at most."""
        done = self.hpcpod(*words, **more)
        lines = done.stderr.splitlines()
        assert done.returncode not in (0, None) and done.stdout == "", done
        assert lines[0].startswith("hpcpod: ") and lines[0].endswith(f" [{slug}]"), done.stderr
        assert len(lines) == 1 or (len(lines) == 2 and lines[1].startswith("hint: ")), done.stderr
        return done.stderr

    def refused_verify(self, *words: str) -> str:
        """The message of ``image verify``, which says on its output which image is bad."""
        done = self.hpcpod("image", "verify", *words)
        assert done.returncode == 125 and " [image-digest]\n" in done.stderr, done
        return done.stderr

    def start(self, *words: str | Path, uid: int = 0, **more: Any) -> subprocess.Popen[str]:
        """Start the command; the test's end kills it."""
        command = [sys.executable, "-P", "-m", "hpcpod", *map(str, words)]
        return self.watched(self.account(uid).start(command, env=self.environment(), **more))

    def watched(self, process: subprocess.Popen[str]) -> subprocess.Popen[str]:
        self.started.append(process)
        return process

    def pod_words(self, reference: str, program: Sequence[str], options: Sequence[str] = ()) -> list[str]:
        return [str(needs.front_path()), "run", *options, reference, "--", *program]

    def pod(
        self, uid: int, reference: str, *program: str, options: Sequence[str] = (), **more: Any
    ) -> subprocess.CompletedProcess[str]:
        """``hpcpod run`` as this user, to its end."""
        words = self.pod_words(reference, program, options)
        return self.account(uid).run(words, env=self.environment(), **more)

    def start_pod(
        self, uid: int, reference: str, *program: str, options: Sequence[str] = ()
    ) -> subprocess.Popen[str]:
        """Start ``hpcpod run`` as this user."""
        words = self.pod_words(reference, program, options)
        account = self.account(uid)
        return self.watched(account.start(words, env=self.environment(), stdin=subprocess.PIPE))

    @contextlib.contextmanager
    def running(self, uid: int, reference: str, *, options: Sequence[str] = ()) -> Iterator[str]:
        """A pod that runs while the body does; gives its mount table."""
        script = "cat /proc/self/mountinfo; echo; cat"
        process = self.start_pod(uid, reference, "sh", "-c", script, options=options)
        assert process.stdout is not None
        table = ""
        while (line := process.stdout.readline()).strip():
            table += line
        assert table, process.communicate()
        try:
            yield table
        finally:
            status, _, errors = end(process)
        assert status == 0, errors

    def entries(self) -> list[str]:
        return sorted(path.name for path in (self.store / "images").iterdir())

    def mounted(self) -> list[str]:
        """Names of entries that are mounted for all."""
        inside = f"{self.runtime}/mounts/"
        found = [point.split()[0] for point in mount_points()]
        return sorted(point.removeprefix(inside) for point in found if point.startswith(inside))

    def leases(self) -> dict[str, list[str]]:
        found = {path.name: sorted(os.listdir(path)) for path in (self.runtime / "leases").iterdir()}
        return {name: leases for name, leases in found.items() if leases}

    def loops(self) -> list[str]:
        return [file for file in loop_files() if file.startswith(str(self.store))]

    def servers(self) -> list[int]:
        """Processes that serve a file of ours by FUSE."""
        found = []
        for link in Path("/proc").glob("[0-9]*/fd/*"):
            with contextlib.suppress(OSError):
                if os.readlink(link).startswith(f"{self.base}/") and b"squashfuse" in _command(link):
                    found.append(int(link.parts[2]))
        return sorted(set(found))

    def assert_idle(self) -> None:
        """Nothing is mounted, leased, half-made or half-removed."""
        assert self.mounted() == self.loops() == []
        assert self.leases() == {}
        assert os.listdir(self.runtime / "mounts") == []
        assert os.listdir(self.store / "tmp") == os.listdir(self.store / "garbage") == []

    def close(self) -> None:
        for process in self.started:
            if process.poll() is None:
                process.kill()
            process.communicate()
        for name in self.mounted():
            subprocess.run(["umount", "-l", self.runtime / "mounts" / name], check=False)


def _command(link: Path) -> bytes:
    return Path(f"/proc/{link.parts[2]}/cmdline").read_bytes()


def reseal(entry: Path, **fields: object) -> None:
    """Have meta.json say something else, as if it had been written so."""
    meta = opened((entry / "meta.json").read_bytes())
    (entry / "meta.json").write_bytes(sealed({**meta, **fields}))


@pytest.fixture
def site() -> Iterator[Site]:
    base = Path(tempfile.mkdtemp(prefix="hpcpod-site-", dir="/var/tmp"))
    memory = Path(tempfile.mkdtemp(prefix="hpcpod-site-", dir="/dev/shm"))
    for path in (base, memory):
        path.chmod(0o755)
    made = Site(base, memory)
    made.configure()
    try:
        yield made
    finally:
        made.close()
        remove_tree(base)
        remove_tree(memory)


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A reference to an image with a shell and some programs; everybody may read it."""
    directory = Path(tempfile.mkdtemp(prefix="hpcpod-site-image-", dir="/var/tmp"))
    directory.chmod(0o755)
    yield write_layout(directory / "layout", small_tree(), env={"PATH": "/bin"})
    shutil.rmtree(directory)


def tiny(site: Site, name: str, data: bytes = b"", count: int = 1) -> str:
    """A reference to an image of some files that no other image has."""
    files = [layouts.directory(b".")]
    files += [layouts.file(b"%s-%d" % (name.encode(), n), data or name.encode()) for n in range(count)]
    return f"oci:{layouts.write_layout(site.base / name, layouts.image(*[b''.join(files)]))}"
