# SPDX-License-Identifier: Apache-2.0
"""``python -m bench``: all benchmarks, one after the other; results go to build/bench.

start-up on one node, unpacking, start-up through Slurm (root only: it makes the test cluster).  Each can be
run alone: ``python -m bench.startup``, ``bench.unpack``, ``bench.slurm``.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run them; the worst of their statuses."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a minute or two, for a first look")
    options, rest = parser.parse_known_args(argv)
    words = [*(["--quick"] if options.quick else []), *rest]
    parts = ["bench.startup", "bench.unpack"]
    if os.geteuid() == 0:
        parts.append("bench.slurm")
    else:
        print("==> bench.slurm: left out, it needs root", flush=True)
    worst = 0
    for part in parts:
        print(f"==> {part}", flush=True)
        # A process each: the first moves into a mount namespace of its own.
        worst = max(worst, subprocess.run([sys.executable, "-m", part, *words], check=False).returncode)
    return worst


if __name__ == "__main__":
    sys.exit(main())
