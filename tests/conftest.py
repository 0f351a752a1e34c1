# SPDX-License-Identifier: Apache-2.0
"""How the tests run: needs and tiers, and the plain user that most of them run commands as."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis.database import DirectoryBasedExampleDatabase

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    # Behind everything else: `tests` and `bench` come from the checkout, `hpcpod` from the installation.
    sys.path.append(str(ROOT))

import hpcpod  # noqa: E402
from tests import needs  # noqa: E402
from tests.testbed.signals import keep_from_children  # noqa: E402

PACKAGES = str(Path(hpcpod.__file__).resolve().parent.parent)
"""Where the package under test lies; unlike ROOT, every user can go there."""

# No deadline for one example: it would fail on a busy machine and mean nothing.
# No memory of failed examples in a checkout that is somebody else's.
_MEMORY = ROOT / ".hypothesis"
_WRITABLE = os.access(_MEMORY if _MEMORY.exists() else ROOT, os.W_OK)
settings.register_profile(
    "house",
    deadline=None,
    database=DirectoryBasedExampleDatabase(_MEMORY / "examples") if _WRITABLE else None,
)
settings.load_profile("house")

TIERS = ("lint", "unit", "native", "integration", "cluster", "vm")
"""Directories of tests/, cheapest first: in this order they run."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--require",
        default="",
        metavar="all|NEED,NEED",
        help="needs that this machine must meet: a test that would be skipped for one fails; "
        "'all' fails every skipped test",
    )


def _required(config: pytest.Config) -> set[str]:
    return {name for name in str(config.getoption("--require")).split(",") if name}


def pytest_configure(config: pytest.Config) -> None:
    keep_from_children()
    unknown = sorted(_required(config) - needs.PROBES.keys() - {"all"})
    if unknown:
        raise pytest.UsageError(f"--require: no such need: {', '.join(unknown)}; see tests/needs.py")


def _tier(item: pytest.Item) -> str | None:
    path = item.path.relative_to(ROOT).parts
    return path[1] if path[0] == "tests" and path[1] in TIERS else None


def _needs(item: pytest.Item) -> list[str]:
    return [str(name) for mark in item.iter_markers("needs") for name in mark.args]


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        unknown = [name for name in _needs(item) if name not in needs.PROBES]
        if unknown:
            raise pytest.UsageError(f"{item.nodeid}: no such need: {', '.join(unknown)}; see tests/needs.py")
        tier = _tier(item)
        if tier:
            item.add_marker(tier)
    items.sort(key=lambda item: TIERS.index(_tier(item) or TIERS[-1]))


def pytest_runtest_setup(item: pytest.Item) -> None:
    required = _required(item.config)
    for name in _needs(item):
        reason = needs.unmet(name)
        if reason and required & {name, "all"}:
            pytest.fail(f"needs {name}: {reason}", pytrace=False)
        if reason:
            pytest.skip(f"needs {name}: {reason}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Any:
    """Under --require=all no skip goes by unseen, whoever asked for it."""
    report = yield
    if report.skipped and not hasattr(report, "wasxfail") and "all" in _required(item.config):
        report.outcome = "failed"
        report.longrepr = f"skipped, but --require=all: {report.longrepr[-1]}"
    return report


# --------------------------------------------------------------------------- the user of a test


@dataclass(frozen=True)
class Account:
    """A user that tests run commands as, with directories of its own.

    home is on disk, as are the store and its parent; runtime is on tmpfs.  store and runtime do not exist
    yet: hpcpod makes them, mode 0700.
    """

    uid: int
    home: Path
    store: Path
    runtime: Path

    def environment(self, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        """What a command of this user finds in its environment, and nothing of the tester's."""
        return {
            "PATH": f"{needs.front_path().parent}:{needs.SYSTEM_PATH}",
            "LANG": "C.UTF-8",
            "HOME": str(self.home),
            "USER": f"u{self.uid}",
            "LOGNAME": f"u{self.uid}",
            "HPCPOD_STORE": str(self.store),
            "HPCPOD_RUNTIME": str(self.runtime),
            **(extra or {}),
        }

    def command(self, argv: Sequence[str | os.PathLike[str]]) -> list[str]:
        """The command with the words before it that make it run as this user."""
        words = [] if os.geteuid() == self.uid else needs.drop_words(self.uid)
        return [*words, *(os.fspath(word) for word in argv)]

    def run(
        self,
        argv: Sequence[str | os.PathLike[str]],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        timeout: float = 60,
        check: bool = False,
        **more: Any,
    ) -> subprocess.CompletedProcess[str]:
        """Run it to its end as this user, in its home; output is text, captured apart."""
        done = subprocess.run(
            self.command(argv),
            env=self.environment(env),
            cwd=cwd or self.home,
            timeout=timeout,
            check=False,
            **{"stdin": subprocess.DEVNULL, "capture_output": True, "text": True, **more},
        )
        if check and done.returncode != 0:
            pytest.fail(f"exit status {done.returncode}: {argv}\n{done.stdout}{done.stderr}", pytrace=False)
        return done

    def start(
        self,
        argv: Sequence[str | os.PathLike[str]],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        **more: Any,
    ) -> subprocess.Popen[str]:
        """Start it as this user, in its home; the test ends it."""
        return subprocess.Popen(
            self.command(argv),
            env=self.environment(env),
            cwd=cwd or self.home,
            **{
                "stdin": subprocess.DEVNULL,
                "stdout": subprocess.PIPE,
                "stderr": subprocess.PIPE,
                "text": True,
                **more,
            },
        )


def remove_tree(path: Path) -> None:
    """Remove a directory tree that may hold directories without write permission, as images do."""
    for directory, _, _ in os.walk(path):  # top down: a directory is made readable before it is read
        if os.geteuid() != 0:
            Path(directory).chmod(stat.S_IRWXU)
    shutil.rmtree(path)


def _own_directory(base: str, uid: int) -> Path:
    path = Path(tempfile.mkdtemp(prefix="hpcpod-test-", dir=base))
    if os.geteuid() == 0:
        os.chown(path, uid, uid)
    return path


def _account(uid: int) -> Iterator[Account]:
    on_disk = _own_directory("/var/tmp", uid)
    in_memory = _own_directory("/dev/shm", uid)
    home = on_disk / "home"
    home.mkdir(mode=0o755)
    if os.geteuid() == 0:
        os.chown(home, uid, uid)
    try:
        yield Account(uid, home, on_disk / "store", in_memory / "runtime")
    finally:
        remove_tree(on_disk)
        remove_tree(in_memory)


@pytest.fixture(scope="session")
def front() -> Path:
    """The native ``hpcpod`` under test; tests that use it need "native"."""
    return needs.front_path()


@pytest.fixture
def user() -> Iterator[Account]:
    """A plain user: uid 1001 where the tests run as root, else the one who runs them."""
    yield from _account(needs.PLAIN_UID if os.geteuid() == 0 else os.geteuid())


@pytest.fixture
def root_user() -> Iterator[Account]:
    """Root, with directories of its own; tests that use it need "root"."""
    yield from _account(0)


@pytest.fixture
def as_user(user: Account) -> Any:
    """``as_user(argv, env=…, cwd=…, timeout=…, check=…)``: run a command to its end as the plain user."""
    return user.run
