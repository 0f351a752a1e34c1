# SPDX-License-Identifier: Apache-2.0
"""A small image made of programs of this machine: an OCI layout with one layer."""

from __future__ import annotations

import platform
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.testbed import layouts

PROGRAMS = (
    "sh", "cat", "chmod", "cp", "echo", "env", "false", "grep", "id", "kill", "ln", "ls", "mkdir", "printf",
    "readlink", "rm", "sleep", "stat", "touch", "true",
)  # fmt: skip

PASSWD = "root:x:0:0:root:/root:/bin/sh\nsmith:x:500:500:of the image:/home/smith:/bin/sh\n"
GROUP = "root:x:0:\nwheel:x:10:smith\n"

ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


@dataclass
class Tree:
    """What the layer holds.  Names are without a leading slash.

    files: name to (mode, content); links: name to target; directories: name to mode; fifos: names.
    """

    files: dict[str, tuple[int, bytes]] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)
    directories: dict[str, int] = field(default_factory=dict)
    fifos: list[str] = field(default_factory=list)

    def without(self, *names: str) -> Tree:
        """A copy that lacks these entries."""

        def kept(entries: Mapping) -> dict:
            return {name: value for name, value in entries.items() if name not in names}

        return Tree(kept(self.files), kept(self.links), kept(self.directories), list(self.fifos))


def _libraries(program: str) -> list[str]:
    listed = subprocess.run(["ldd", program], capture_output=True, text=True, check=False).stdout
    return [word for line in listed.splitlines() for word in line.split() if word.startswith("/")]


def small_tree() -> Tree:
    """The usual directories, the programs above with their libraries, accounts of its own."""
    tree = Tree(
        directories=dict.fromkeys(("dev", "proc", "sys", "etc", "run", "home", "var", "srv", "mnt"), 0o755)
    )
    tree.directories |= {"tmp": 0o1777, "var/tmp": 0o1777, "root": 0o700, "opt/app": 0o755}
    wanted = [found for name in PROGRAMS if (found := shutil.which(name, path="/usr/bin:/bin"))]
    for program in wanted:
        tree.files[f"bin/{Path(program).name}"] = (0o755, Path(program).read_bytes())
        for library in _libraries(program):
            tree.files[library.lstrip("/")] = (0o755, Path(library).read_bytes())
    tree.files["etc/passwd"] = (0o644, PASSWD.encode())
    tree.files["etc/group"] = (0o644, GROUP.encode())
    tree.files["etc/hosts"] = (0o644, b"127.0.0.1 image\n")
    tree.files["etc/resolv.conf"] = (0o644, b"# of the image\n")
    tree.files["etc/os-release"] = (0o644, b"ID=tiny\n")
    return tree


def _layer(tree: Tree) -> bytes:
    parts = [layouts.directory(name.encode(), mode) for name, mode in tree.directories.items()]
    parts += [layouts.file(name.encode(), content, mode=mode) for name, (mode, content) in tree.files.items()]
    parts += [layouts.symlink(name.encode(), target.encode()) for name, target in tree.links.items()]
    parts += [layouts.header(name.encode(), b"6") for name in tree.fifos]
    return b"".join(parts)


def write_layout(
    layout: Path,
    tree: Tree,
    *,
    env: Mapping[str, str] | None = None,
    cmd: Sequence[str] = (),
    workdir: str = "",
) -> str:
    """Write the layout at this path, readable by all; its reference, ``oci:PATH:latest``."""
    config = {"Env": [f"{name}={value}" for name, value in (env or {}).items()], "Cmd": list(cmd)}
    image = layouts.Image(
        [layouts.Layer(_layer(tree), "zstd")],
        architecture=ARCHITECTURES[platform.machine()],
        config={**config, "WorkingDir": workdir} if workdir else config,
    )
    layouts.write_layout(layout, {"latest": image})
    return f"oci:{layout}:latest"
