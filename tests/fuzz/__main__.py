# SPDX-License-Identifier: Apache-2.0
"""``python -m tests.fuzz [TARGET …]``: see tests/fuzz/__init__.py."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

from tests.fuzz.target import BASE, MEMORY, SECONDS, Target, load, targets


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("target", nargs="?")
    parser.add_argument("--seconds", type=int, default=0, help="end after so long")
    parser.add_argument("--runs", type=int, default=-1, help="end after so many inputs")
    parser.add_argument("--seed", type=int, default=0, help="0: another each time")
    parser.add_argument("--corpus", help="directory that keeps inputs; the default is a new one in /var/tmp")
    parser.add_argument("--replay", help="run one file, with its traceback")
    return parser.parse_args()


def _write_inputs(target: Target, directory: Path) -> None:
    for name, data in {**target.seeds, **target.known}.items():
        (directory / f"seed-{name.replace(' ', '-').replace('/', '-')}").write_bytes(data)


def _write_words(target: Target, path: Path) -> None:
    lines = ('"' + "".join(f"\\x{byte:02x}" for byte in word) + '"\n' for word in target.words)
    path.write_text("".join(lines))


def _supervised(name: str, asked: argparse.Namespace) -> int:
    """Fuzz in a child: libFuzzer ends its process in ways of its own, and leaves what it needed."""
    with (
        tempfile.TemporaryDirectory(prefix="hpcpod-fuzz-", dir="/var/tmp") as work,
        tempfile.TemporaryDirectory(
            prefix="hpcpod-fuzz-", dir="/dev/shm", ignore_cleanup_errors=True
        ) as memory,
    ):
        child = os.fork()
        if not child:
            os.environ[BASE] = memory
            _fuzz(name, asked, Path(work))
            os._exit(0)
        while True:
            try:
                return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            except KeyboardInterrupt:
                continue  # the child has it too, and says what it did so far


def _fuzz(name: str, asked: argparse.Namespace, work: Path) -> None:
    import atheris  # not with --replay, which works where there is no wheel of it

    with atheris.instrument_imports(include=["hpcpod"]):
        target = load(name)
    corpus = Path(asked.corpus or tempfile.mkdtemp(prefix=f"hpcpod-fuzz-{name}-", dir="/var/tmp"))
    (corpus / "inputs").mkdir(parents=True, exist_ok=True)
    (work / "seeds").mkdir()
    _write_inputs(target, work / "seeds")
    _write_words(target, work / "words")
    options = [
        f"-artifact_prefix={corpus}/",
        *([f"-dict={work}/words"] if target.words else []),
        f"-max_len={target.longest}",
        f"-rss_limit_mb={MEMORY >> 20}",
        f"-timeout={SECONDS}",
        f"-runs={asked.runs}",
        "-print_final_stats=1",
    ]
    options += [f"-seed={asked.seed}"] if asked.seed else []
    options += [f"-max_total_time={asked.seconds}"] if asked.seconds else []
    atheris.Setup([sys.argv[0], *options, str(corpus / "inputs"), str(work / "seeds")], target.run)
    sys.stderr.write(f"{name}: findings go to {corpus}\n")
    atheris.Fuzz()


def main() -> None:
    """Run what the command line says."""
    asked = _arguments()
    if asked.target is None:
        for name, target in targets().items():
            print(f"{name:12} {(sys.modules[target.run.__module__].__doc__ or '').splitlines()[0]}")
    elif asked.replay:
        load(asked.target).run(Path(asked.replay).read_bytes())
    else:
        os.umask(0o022)
        sys.exit(_supervised(asked.target, asked))


if __name__ == "__main__":
    main()
