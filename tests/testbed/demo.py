# SPDX-License-Identifier: Apache-2.0
"""``make demo``: a real image's MPI ranks, started by hpcpod on a real Slurm of two nodes.

``python -m tests.testbed.demo [--local]``.  As root it brings the cluster up on this machine, runs the job
as a plain user of it, shows how long the start took, and takes everything down again.  A plain user, or
``--local``, gets the same program from hpcpod's own launcher, without a scheduler.

Exit status: 0 only if the program found a world of four ranks and the right sums, and nothing was left.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

from tests.testbed import image
from tests.testbed.cluster import Cluster, ClusterError
from tests.testbed.image import ImageUnavailable
from tests.testbed.needs import SEARCH, missing

RANKS = 4
JOB_SECONDS = 180
"""Beyond that the job hangs; it takes a few seconds."""

INTERRUPTED = 130
"""Exit status after Ctrl-C: 128 + SIGINT, as a shell says it."""

PROGRAM = f"python3 -m hpcpod_demo --size {RANKS}"

JOB = """\
say() {{ printf '\\n==> %s\\n' "$*"; }}
show() {{ printf '    $ %s\\n' "$*"; eval "$*"; }}
start() {{ show "srun -N2 -n{ranks} --mpi=pmi2 hpcpod run $IMAGE -- {program}"; }}
report() {{
    show "srun -N2 -n2 hpcpod report --raw $SLURM_JOB_ID.$1 | hpcpod report -"
}}
set -o pipefail
say 'first start: each node checks the image and unpacks it, once'
start || exit 1
say 'how long the phases of that start took'
report 0 || exit 1
say 'second start: each node has the image, and knows what to do with it'
start || exit 1
say 'how long the phases of the second start took'
report 2 || exit 1
"""
"""What runs in the allocation.  Events are kept on each node, so one task per node hands them over; the
reports are steps too, which makes the second start step 2."""


def say(text: str) -> None:
    """One line of progress, at once."""
    print(f"==> {text}", flush=True)


def front() -> Path:
    """The native ``hpcpod`` of the installation that this Python belongs to."""
    return Path(os.environ.get("HPCPOD_FRONT") or Path(sys.prefix) / "bin" / "hpcpod")


def build_image() -> str:
    """The reference of the demo's image; built on the first run.  Raises ImageUnavailable."""
    started = time.monotonic()
    say("image: Debian with Python, numpy, mpi4py and MPICH")
    reference = image.reference(image.DEMO, lambda line: print(f"    {line}", flush=True))
    say(f"image: {reference} ({time.monotonic() - started:.0f} s)")
    return reference


def run_job(cluster: Cluster, reference: str) -> int:
    """Run the job as alice, showing its output while it comes; its exit status."""
    script = JOB.format(ranks=RANKS, program=PROGRAM)
    words = [
        "salloc",
        "-Q",
        "-N2",
        f"-n{RANKS}",
        "timeout",
        "--kill-after=5",
        str(JOB_SECONDS),
        "bash",
        "-c",
        script,
    ]
    variables = {"PATH": f"{front().parent}:{SEARCH}", "IMAGE": reference}
    with cluster.popen(words, env=variables, merge=True) as job:
        assert job.stdout is not None
        for line in job.stdout:
            print(line, end="", flush=True)
    return job.returncode


def on_slurm(reference: str) -> int:
    """The whole demo on a cluster of this machine."""
    say("cluster: ctl, n0 and n1, each in namespaces of its own; munge, slurmctld and two slurmd")
    started = time.monotonic()
    cluster = Cluster(nodes=2, keep=[Path(reference.split(":")[1]), front().parent])
    with cluster:
        say(f"cluster: all nodes idle after {time.monotonic() - started:.1f} s; the job's user is alice")
        status = run_job(cluster, reference)
        states = cluster.wait_idle()
        print()
        say(f"the job's exit status: {status}; nodes afterwards: {states}")
        started = time.monotonic()
    left = cluster.leftovers()
    if left:
        say("left behind: " + "; ".join(left))
        return 1
    say(
        f"taken down in {time.monotonic() - started:.1f} s; nothing is left: "
        "no process, namespace, mount, control group, interface or file"
    )
    return 0 if status == 0 and set(states.values()) == {"idle"} else 1


def local(reference: str) -> int:
    """The same program without a scheduler, as whoever runs this."""
    program = [str(front()), "run", "-n", str(RANKS), reference, "--", *shlex.split(PROGRAM)]
    for words in (program, [str(front()), "report"]):
        print(f"    $ {shlex.join(words)}", flush=True)
        done = subprocess.run(words, stdin=subprocess.DEVNULL, timeout=JOB_SECONDS, check=False)
        if done.returncode != 0:
            say(f"exit status {done.returncode}")
            return 1
    say("the unpacked image stays in hpcpod's store for the next run; `hpcpod image rm` removes it")
    return 0


def main() -> int:
    """Choose the way, say so, go it."""
    parser = argparse.ArgumentParser(prog="make demo")
    parser.add_argument("--local", action="store_true", help="without Slurm")
    options = parser.parse_args()
    if not front().is_file():
        say(f"{front()}: not there; `make demo` installs it")
        return 1
    try:
        if options.local or os.geteuid() != 0:
            why = "asked for" if options.local else "a cluster on this machine takes root"
            say(f"no Slurm ({why}): hpcpod's own launcher starts the ranks with the image's mpiexec")
            return local(build_image())
        gaps = missing()
        if gaps:
            say("this machine cannot hold the cluster; `make demo DEMO_ARGS=--local` does without. Missing:")
            print("".join(f"    {gap}\n" for gap in gaps), end="")
            return 1
        return on_slurm(build_image())
    except (ImageUnavailable, ClusterError) as error:
        print(f"==> {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # what was brought up has been taken down on the way here
        print("==> interrupted", file=sys.stderr)
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
