# SPDX-License-Identifier: Apache-2.0
"""The options of ``hpcpod run``: one table, read by the command line, the C front and the man page.

The C front (native/options.h is made from this at build time) needs only how many words an option takes;
what it means is decided here, in Python, when the plan is made.
"""

from __future__ import annotations

from hpcpod.frozen import frozen


@frozen
class Option:
    """One option.  metavar: empty for a flag; multiple: may be given more than once."""

    name: str
    help: str
    short: str = ""
    metavar: str = ""
    multiple: bool = False


RUN_OPTIONS: tuple[Option, ...] = (
    Option(
        "bind",
        "Bind SRC of the node into the pod, at DST (default: the same path). OPTS, separated by commas: "
        "ro, rw, optional (pass over a missing SRC). May be repeated.",
        short="B",
        metavar="SRC[:DST[:OPTS]]",
        multiple=True,
    ),
    Option(
        "env",
        "Set NAME in the program's environment, over what the image and the node say; NAME alone keeps the "
        "node's value against the image's. May be repeated.",
        metavar="NAME[=VALUE]",
        multiple=True,
    ),
    Option(
        "workdir",
        "Start the program in this directory of the pod (default: the current directory where the pod has "
        "it, else the image's).",
        short="w",
        metavar="DIR",
    ),
    Option(
        "ntasks",
        "Without a scheduler: start N ranks on this machine through the image's own mpiexec.",
        short="n",
        metavar="N",
    ),
    Option(
        "mpi",
        "Which process-manager interface the ranks use: auto, pmi2, pmix, or none (do not check; the "
        "program is no MPI program). Default: auto.",
        metavar="KIND",
    ),
    Option(
        "writable",
        "Lay a memory file system over the image, so that the program can write anywhere; gone with the pod.",
    ),
    Option(
        "writable-size",
        "Size of that layer, such as 512M or 2G (default: 256M); implies --writable.",
        metavar="SIZE",
    ),
    Option("no-home", "Do not bind the home directory."),
    Option(
        "shm-size",
        "Size of the pod's /dev/shm, such as 512M or 2G (default: half of the node's memory).",
        metavar="SIZE",
    ),
    Option(
        "seccomp",
        "System call filter: default, or none.",
        metavar="PROFILE",
    ),
    Option(
        "platform",
        "Take the image for this platform out of an index (default: this machine's).",
        metavar="OS/ARCH[/VARIANT]",
    ),
    Option(
        "rootfs",
        "Form of the image in the store: dir, squashfs, erofs (the site's store only), or auto: what is "
        "there, else what suits the node. Default: auto.",
        metavar="FORM",
    ),
    Option(
        "pull",
        "When to ask a registry which image a name means: always, missing (not while the store has what it "
        "meant last), or never. Default: missing.",
        metavar="WHEN",
    ),
    Option(
        "insecure-options",
        "Switch off checks, separated by commas: signature (of your own policy; the site's stays), tls "
        "(a registry's certificate), http (registries without TLS).",
        metavar="CHECK,...",
        multiple=True,
    ),
    Option(
        "preserve-fds",
        "Keep N descriptors beyond stdio open in the program: 3, 4, … (PMI's own is always kept).",
        metavar="N",
    ),
    Option("debug", "Show tracebacks, and how long each phase of a preparation took."),
)

PLAN_OPTIONS: tuple[Option, ...] = (Option("json", "Print the plan as JSON, for scripts."), *RUN_OPTIONS)
"""The options of ``hpcpod plan``."""
