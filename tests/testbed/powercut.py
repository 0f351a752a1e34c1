# SPDX-License-Identifier: Apache-2.0
"""What runs in the virtual machine whose power is cut: the only process that its kernel starts.

``python3 -m tests.testbed.powercut LAYOUTS SEED FORM,FORM…``, from test_power_loss.py.  It mounts the disk,
prints what it finds in the store there, clears up, prints ``ready``, and then works in the store until the
machine is gone.  With SEED 0 it pulls each image in each form once, prints what that gave, and halts.  Lines:

    found NAME SHA256       an image of the store, and a hash of all that it holds
    left PATH               what the collector should have taken
    start WORDS, done STATUS WORDS
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.testbed.crashes import IMAGES, entry, leftovers
from tests.testbed.forkserver import import_everything
from tests.testbed.syscalls import mount

DISK = "/mnt"
STORE = Path(DISK) / "store"
RUNTIME = Path("/run/hpcpod-test")
HALT = "/proc/sysrq-trigger"


def say(*words: object) -> None:
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


def boot() -> None:
    """Mount what a command needs; the root is the host's, read-only."""
    mount("proc", "/proc", "proc")
    with contextlib.suppress(OSError):  # most kernels do it themselves
        mount("dev", "/dev", "devtmpfs")
    mount("run", "/run", "tmpfs")
    mount("/dev/ubda", DISK, "ext4")
    os.environ |= {"HPCPOD_STORE": str(STORE), "HPCPOD_RUNTIME": str(RUNTIME), "HOME": DISK}
    os.environ["PATH"] = "/usr/sbin:/usr/bin:/sbin:/bin"


def run(words: Sequence[str]) -> int:
    """Run ``hpcpod WORDS`` in a child; its exit status."""
    say("start", *words)
    child = os.fork()
    if child == 0:
        status: object = 1
        try:
            from hpcpod.cli.main import main

            sys.argv = ["hpcpod", *words]
            main()
        except SystemExit as end:
            status = end.code
        finally:
            with contextlib.suppress(OSError):
                sys.stderr.flush()
            os._exit(status if isinstance(status, int) else 0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    say("done", code, *words)
    return code


def look() -> None:
    """Say what is in the store."""
    images = STORE / "images"
    for path in sorted(images.iterdir()) if images.exists() else []:
        found = repr(sorted(entry(path).items()))
        say("found", path.name, hashlib.sha256(found.encode()).hexdigest())


def work(dice: random.Random, pulls: Sequence[Sequence[str]], references: Sequence[str]) -> None:
    """Pull and remove for ever."""
    while True:
        run(dice.choice(pulls))
        if dice.random() < 0.5:
            run(["image", "rm", dice.choice(references)])


def main() -> None:
    layouts, seed, forms = sys.argv[1:4]  # behind them stand options of the kernel
    boot()
    import_everything()
    os.dup2(1, 2)
    references = [f"oci:{layouts}/{name}" for name in IMAGES]
    pulls = [["image", "pull", f"--rootfs={form}", name] for form in forms.split(",") for name in references]
    if seed == "0":
        for words in pulls:
            run(words)
        look()
    else:
        look()
        run(["gc"])
        for path in leftovers(STORE, RUNTIME):
            say("left", path)
        say("ready")
        work(random.Random(seed), pulls, references)
    os.sync()
    say("end")
    Path(HALT).write_text("o")


if __name__ == "__main__":
    main()
