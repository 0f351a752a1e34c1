# SPDX-License-Identifier: Apache-2.0
"""Binds, and the mount points that an image lacks."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.integration.pod.conftest import Pods


@pytest.fixture
def data(pods: Pods) -> Path:
    """A directory of the user's, with a file and a directory in it."""
    path = pods.account.home.parent / "data"
    path.mkdir()
    (path / "file").write_text("data\n")
    (path / "below").mkdir()
    for made in (path, path / "below"):
        made.chmod(0o777)
    return path


def test_a_bind_at_a_place_that_the_image_has(pods: Pods, data: Path) -> None:
    script = "cat /mnt/file; echo new >/mnt/below/made"
    assert pods.out("sh", "-c", script, options=["--bind", f"{data}:/mnt"]) == "data"
    assert (data / "below" / "made").read_text() == "new\n"


def test_a_read_only_bind(pods: Pods, data: Path) -> None:
    done = pods.run("sh", "-c", "echo new >/mnt/below/made", options=["--bind", f"{data}:/mnt:ro"])
    assert done.returncode != 0 and "Read-only file system" in done.stderr


@pytest.mark.needs("overlay")
def test_mount_points_that_the_image_lacks_are_made(pods: Pods, data: Path) -> None:
    options = ["-B", f"{data}:/a/b/c", "-B", f"{data}/file:/etc/new/file:ro", "-B", f"{data}:/opt/app/data"]
    script = "cat /a/b/c/file /etc/new/file /opt/app/data/file; stat -c '%a %u' /a/b; ls -A /a /opt/app"
    uid = pods.account.uid
    assert pods.out("sh", "-c", script, options=options).splitlines() == [
        "data", "data", "data", f"755 {uid}", "/a:", "b", "", "/opt/app:", "data",
    ]  # fmt: skip


@pytest.mark.needs("overlay")
def test_made_mount_points_leave_the_root_read_only(pods: Pods, data: Path) -> None:
    done = pods.run("sh", "-c", "echo x >/a/made; cat /etc/os-release", options=["-B", f"{data}:/a/b"])
    assert "Read-only file system" in done.stderr and done.stdout == "ID=tiny\n"


def test_a_file_over_a_file(pods: Pods, data: Path) -> None:
    assert pods.out("cat", "/etc/os-release", options=["-B", f"{data}/file:/etc/os-release"]) == "data"


def test_a_bind_below_a_bind(pods: Pods, data: Path) -> None:
    other = data.parent / "other"
    other.mkdir()
    (other / "file").write_text("other\n")
    options = ["-B", f"{data}:/mnt", "-B", f"{other}:/mnt/below"]
    assert pods.out("cat", "/mnt/file", "/mnt/below/file", options=options) == "data\nother"


def test_a_bind_below_shared_memory(pods: Pods, data: Path) -> None:
    assert pods.out("cat", "/dev/shm/in/file", options=["-B", f"{data}:/dev/shm/in"]) == "data"


def test_a_mount_point_that_cannot_be_made_is_named(pods: Pods, data: Path) -> None:
    done = pods.run("true", options=["-B", f"{data}:/mnt", "-B", f"{data}:/mnt/none"])
    assert done.returncode == 125 and "mount on /mnt/none: No such file or directory [mount]" in done.stderr
    assert not (data / "none").exists()


@pytest.mark.parametrize("kind", ["file over directory", "directory over file"])
def test_what_does_not_fit_is_refused(pods: Pods, data: Path, kind: str) -> None:
    bind = f"{data}/file:/mnt" if kind.startswith("file") else f"{data}:/etc/os-release"
    done = pods.run("true", options=["-B", bind])
    assert done.returncode == 125 and "[mount]" in done.stderr


def test_an_optional_source(pods: Pods) -> None:
    assert pods.out("ls", "-A", "/mnt", options=["-B", "/none-such:/mnt:optional"]) == ""


@pytest.mark.needs("plain", "root")
def test_a_source_that_is_closed_to_the_user(plain_pods: Pods) -> None:
    closed = plain_pods.account.home.parent / "closed"
    (closed / "in").mkdir(parents=True)
    closed.chmod(0o700)
    done = plain_pods.run("true", options=["-B", f"{closed}/in:/mnt"])
    assert (
        done.returncode == 125 and "Permission denied [bind-source]" in done.stderr and "hint:" in done.stderr
    )


def test_binds_of_the_environment_and_odd_names(pods: Pods, data: Path) -> None:
    odd = data / "a b\n\u00e9\\"
    odd.mkdir()
    (odd / "file").write_text("odd\n")
    assert pods.out("cat", "/mnt/file", env={"HPCPOD_BIND": f"/none:/srv:optional,{odd}:/mnt:ro"}) == "odd"


def test_bytes_that_are_no_text_in_a_locale_that_is_not_utf8(pods: Pods, data: Path) -> None:
    odd = os.fsdecode(os.fsencode(data) + b"/\xe9\xff")
    Path(odd).mkdir()
    (Path(odd) / "file").write_text("odd\n")
    for locale in ("C", "POSIX", "C.UTF-8"):
        assert pods.out("cat", "/mnt/file", options=["-B", f"{odd}:/mnt"], env={"LC_ALL": locale}) == "odd"


def test_the_steps_directories_are_bound_when_they_are_there(pods: Pods, data: Path) -> None:
    env = {"PMIX_SERVER_TMPDIR": str(data / "below"), "TMPDIR": "/none-such"}
    (data / "below" / "server").write_text("pmix\n")
    assert pods.out("cat", f"{data}/below/server", env=env, cwd="/") == "pmix"
    assert pods.out("true", env={"PMIX_SERVER_TMPDIR": "relative", "TMPDIR": ""}) == ""


def test_a_relative_run_time_directory(pods: Pods) -> None:
    base = pods.runtime.parent
    for _ in range(2):
        done = pods.run("echo", "there", env={"HPCPOD_RUNTIME": "runtime"}, cwd=base)
        assert (done.returncode, done.stdout) == (0, "there\n"), done.stderr
