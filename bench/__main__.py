# SPDX-License-Identifier: Apache-2.0
"""``python -m bench``: all benchmarks, one after the other; results go to build/bench.

start-up on one node, unpacking, the stores (root only: the site's is root's), start-up through Slurm (root
only: it makes the test cluster).  Each can be run alone: ``python -m bench.startup``, ``bench.unpack``,
``bench.store``, ``bench.slurm``.  ``bench.pull`` is run alone only: it needs a registry.
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
    parser.add_argument("--quick", action="store_true", help="a few minutes, for a first look")
    parser.add_argument("--budget", metavar="SECONDS", help="time to measure, for start-up and for unpacking")
    parser.add_argument("--rounds", metavar="N", help="launches of each kind through Slurm")
    options, rest = parser.parse_known_args(argv)
    words = [*(["--quick"] if options.quick else []), *rest]
    budget = ["--budget", options.budget] if options.budget else []
    rounds = ["--rounds", options.rounds] if options.rounds else []
    parts = {"bench.startup": budget, "bench.unpack": budget}
    if os.geteuid() == 0:
        parts |= {"bench.store": [], "bench.slurm": rounds}
    else:
        print("==> bench.store, bench.slurm: left out, they need root", flush=True)
    worst = 0
    for part, own in parts.items():
        print(f"==> {part}", flush=True)
        # A process each: the first moves into a mount namespace of its own.
        worst = max(worst, subprocess.run([sys.executable, "-m", part, *words, *own], check=False).returncode)
    return worst


if __name__ == "__main__":
    sys.exit(main())
