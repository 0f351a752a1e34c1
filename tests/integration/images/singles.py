# SPDX-License-Identifier: Apache-2.0
"""What the tests of aci: and sif: share: a tree with a static program, and the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.conftest import PACKAGES, Account

HPCPOD = [sys.executable, "-m", "hpcpod"]
SOURCE = """
#include <stdio.h>
#include <stdlib.h>
int main(int argc, char **argv) {
  const char *value = getenv("SOLVER_DEBUG");
  printf("hello %s %s\\n", argc > 1 ? argv[1] : "-", value ? value : "-");
  return 0;
}
"""
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "aarch64"}
"""uname(2)'s names, and appc's."""


def command(account: Account, *words: str) -> subprocess.CompletedProcess[str]:
    """``hpcpod WORDS`` as Python runs it."""
    return account.run([*HPCPOD, *words], env={"PYTHONPATH": PACKAGES})


def fill(tree: Path) -> None:
    """Some of everything that an image has, and a program that needs no library."""
    for name in ("bin", "etc", "usr/lib/deep/er", "proc", "dev", "tmp", "sys"):
        (tree / name).mkdir(parents=True)
    (tree / "hello.c").write_text(SOURCE)
    subprocess.run(["gcc", "-static", "-o", tree / "bin/hello", tree / "hello.c"], check=True)
    (tree / "bin/alias").hardlink_to(tree / "bin/hello")
    (tree / "bin/link").symlink_to("/bin/hello")
    (tree / "etc/secret").write_text("x")
    (tree / "etc/secret").chmod(0o640)
    (tree / "usr/lib/deep/er" / ("n" * 200)).write_text("long name")
    (tree / "usr/lib/odd name").write_bytes(os.urandom(300_001))
    with (tree / "usr/lib/hole").open("wb") as file:
        file.truncate(3_000_000)
    os.utime(tree / "etc/secret", ns=(1_111_111_111_000_000_000,) * 2)


def manifest(**changes: Any) -> bytes:
    """Of an App Container Image for this machine."""
    architecture = ARCHITECTURES[os.uname().machine]
    document = {
        "acKind": "ImageManifest",
        "acVersion": "0.8.11",
        "name": "example.com/hello",
        "labels": [{"name": "os", "value": "linux"}, {"name": "arch", "value": architecture}],
        "app": {
            "exec": ["/bin/hello", "default"],
            "user": "0",
            "group": "0",
            "environment": [{"name": "SOLVER_DEBUG", "value": "true"}],
            "workingDirectory": "/etc",
        },
    }
    return json.dumps(document | changes).encode()
