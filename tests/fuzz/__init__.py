# SPDX-License-Identifier: Apache-2.0
"""Coverage-guided fuzzing of what reads images: libFuzzer, through atheris, which instruments the bytecode.

Each module of ``tests/fuzz/targets`` is one target and defines TARGET, a ``tests.fuzz.target.Target``: a
function that is given bytes and raises when hpcpod breaks a promise, and seeds that code makes.  To add one,
add a module; nothing else names the targets.

    python -m tests.fuzz                            # the list
    python -m tests.fuzz layer --seconds 600        # a long run; new corpus is kept with --corpus DIR
    python -m tests.fuzz layer --runs 5000 --seed 1 # a bounded one
    python -m tests.fuzz layer --replay FILE        # one input, without atheris, with the traceback

What a run finds is written to ``--corpus`` (or a new directory in /var/tmp) as ``crash-…``, ``timeout-…``
or ``oom-…``.  When it is mended, the input goes into the target's ``known`` as an expression, so that it is
tried ever after.  ``tests/integration/images/test_fuzz.py`` runs every seed, every known input and a bounded
run of every target.

The rules that all targets share: only HpcpodError may come out, with a printable message; a run takes at most
SECONDS and MEMORY; nothing beside the scratch directory's target changes; what is accepted has stated
properties, and where there is another reader, it agrees or the difference is named in the target.
"""
