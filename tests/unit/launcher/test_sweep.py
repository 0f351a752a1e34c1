# SPDX-License-Identifier: Apache-2.0
"""What is swept from the run-time directory, and what never is."""

from __future__ import annotations

import fcntl
import os
import subprocess
import time
from pathlib import Path

from hpcpod.launcher.sweep import sweep


def pod(runtime: Path, name: str, room: str = "pods") -> Path:
    made = runtime / room / name
    made.mkdir(parents=True)
    os.mkfifo(made / "members", 0o600)
    (made / "record").write_text("")
    (made / "holder").symlink_to("1")
    return made


def dead_pid() -> int:
    process = subprocess.Popen(["/bin/true"])
    process.wait()
    return process.pid


def test_dead_pods_go_and_live_ones_stay(tmp_path: Path) -> None:
    dead, live = pod(tmp_path, "slurm-1.0-n0-x"), pod(tmp_path, "slurm-2.0-n0-x")
    reader = os.open(live / "members", os.O_RDONLY | os.O_NONBLOCK)
    try:
        assert sweep(str(tmp_path)) == 1
    finally:
        os.close(reader)
    assert not dead.exists() and live.exists()


def test_dead_mounts_of_images_go_and_live_ones_stay(tmp_path: Path) -> None:
    dead, live = (pod(tmp_path, f"sha256-{name}.squashfs-x", "mounts") for name in "ab")
    half = pod(tmp_path, f".{dead_pid()}", "mounts")
    reader = os.open(live / "members", os.O_RDONLY | os.O_NONBLOCK)
    try:
        assert sweep(str(tmp_path)) == 2
    finally:
        os.close(reader)
    assert not dead.exists() and not half.exists() and live.exists()


def test_what_is_no_directory_goes_and_no_link_is_followed(tmp_path: Path) -> None:
    elsewhere = pod(tmp_path, "x", "elsewhere")
    (tmp_path / "mounts").mkdir()
    (tmp_path / "mounts/link").symlink_to(elsewhere)
    (tmp_path / "mounts/file").touch()
    assert sweep(str(tmp_path)) == 2
    assert not any((tmp_path / "mounts").iterdir()) and len(list(elsewhere.iterdir())) == 3


def test_half_made_pods_go_with_their_maker(tmp_path: Path) -> None:
    dead, live = pod(tmp_path, f".{dead_pid()}"), pod(tmp_path, f".{os.getpid()}")
    odd = pod(tmp_path, ".odd")
    assert sweep(str(tmp_path)) == 2
    assert not dead.exists() and live.exists() and not odd.exists()


def test_a_dead_process_that_nobody_waited_for_is_dead(tmp_path: Path) -> None:
    with subprocess.Popen(["/bin/true"]) as process:
        while Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
            time.sleep(0.01)
        made = pod(tmp_path, f".{process.pid}")
        assert sweep(str(tmp_path)) == 1
    assert not made.exists()


def test_old_files_go_but_no_lock_that_is_held(tmp_path: Path) -> None:
    old = time.time() - 100 * 86400
    for name in ("events/a.jsonl", "plans/a", "locks/free", "locks/held"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (old, old))
        (tmp_path / f"{name}-new").touch()
    with (tmp_path / "locks/held").open() as held:
        fcntl.flock(held, fcntl.LOCK_SH)
        assert sweep(str(tmp_path)) == 3
    left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert left == ["events/a.jsonl-new", "locks/free-new", "locks/held", "locks/held-new", "plans/a-new"]


def test_an_empty_directory_needs_nothing(tmp_path: Path) -> None:
    assert sweep(str(tmp_path)) == 0
