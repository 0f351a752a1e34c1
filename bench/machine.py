# SPDX-License-Identifier: Apache-2.0
"""What a result depends on and a reader has to know: the machine, its load, the versions of all programs."""

from __future__ import annotations

import datetime
import os
import platform
import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

VERSIONS: Mapping[str, Sequence[str]] = {
    "bubblewrap": ("bwrap", "--version"),
    "Charliecloud": ("ch-run", "--version"),
    "crun": ("crun", "--version"),
    "umoci": ("umoci", "--version"),
    "Slurm": ("slurmd", "-V"),
    "util-linux": ("nsenter", "--version"),
}


def _first_match(path: str, pattern: str, default: str) -> str:
    found = re.search(pattern, Path(path).read_text(), re.MULTILINE)
    return found.group(1) if found else default


def version_of(command: Sequence[str]) -> str:
    """First version number that a program prints, or why there is none."""
    environment = {**os.environ, "USER": os.environ.get("USER", "bench")}
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    except OSError as error:
        return error.strerror or "cannot be run"
    found = re.search(r"\d+(\.\d+)+\S*", done.stdout + done.stderr)
    return found.group(0) if found else "unknown"


def file_system_of(path: Path) -> str:
    """Type of the file system that a path lies on."""
    done = subprocess.run(["stat", "-f", "-c", "%T", path], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def load() -> float:
    """Processes that ran or waited to run over the last minute, all of them together."""
    return os.getloadavg()[0]


def facts() -> dict[str, str | int | float]:
    """The machine, for the head of a result."""
    memory = int(_first_match("/proc/meminfo", r"^MemTotal:\s+(\d+)", "0"))
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "cpu": _first_match("/proc/cpuinfo", r"^model name\s*:\s*(.+)$", platform.machine()),
        "cores": len(os.sched_getaffinity(0)),
        "virtual": "hypervisor" in Path("/proc/cpuinfo").read_text(),
        "memory_gib": round(memory / 2**20),
        "kernel": platform.release(),
        "system": _first_match("/etc/os-release", r'^PRETTY_NAME="?([^"\n]+)', "unknown"),
        "mounts": len(Path("/proc/self/mounts").read_text().splitlines()),
        "load_before": load(),
        "nice": os.getpriority(os.PRIO_PROCESS, 0),
    }


def versions() -> dict[str, str]:
    """Versions of the peers as installed."""
    return {name: version_of(command) for name, command in VERSIONS.items()}
