# SPDX-License-Identifier: Apache-2.0
"""The command ``hpcpod``: its words, loaded when they are called for, and how errors end it."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import click

from hpcpod.cli.suggest import Suggesting
from hpcpod.errors import EXIT_HPCPOD, HpcpodError, as_hpcpod_error
from hpcpod.launcher.signals import clear_up_on_signals

EXIT_PIPE = 141
"""128 + SIGPIPE."""

_COMMANDS = {
    "doctor": ("hpcpod.cli.doctor", "doctor"),
    "gc": ("hpcpod.cli.gc", "gc"),
    "image": ("hpcpod.cli.image", "image"),
    "plan": ("hpcpod.cli.run", "plan"),
    "report": ("hpcpod.cli.report", "report"),
    "run": ("hpcpod.cli.run", "run"),
    "trust": ("hpcpod.cli.trust", "trust"),
}


class _Lazy(Suggesting):
    """A group that imports a command when it is used: `hpcpod report` need not load the image reader."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, name = _COMMANDS[cmd_name]
        command: click.Command = getattr(importlib.import_module(module), name)
        return command

    def guess(self, ctx: click.Context, word: str) -> str:
        """As its base; `pull`, `rm` and their like are words of `image`."""
        group = self.get_command(ctx, "image")
        if isinstance(group, Suggesting) and not (near := super().guess(ctx, word)):
            near = group.guess(ctx, word)
            return f"image {near}" if near else ""
        return near

    def invoke(self, ctx: click.Context) -> object:
        """As its base, but a closed pipe ends the command by status 141, as SIGPIPE would; click says 1."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            _give_up_output()
            raise SystemExit(EXIT_PIPE) from None


def _give_up_output() -> None:
    """Let the interpreter's last flush go nowhere: it would fail again, with a message of its own."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)


def _is_of_output(error: BaseException) -> bool:
    """Whether this came up while click printed: such an OSError names no file."""
    trace = error.__traceback__
    while trace and trace.tb_next:
        trace = trace.tb_next
    return trace is not None and trace.tb_frame.f_globals.get("__name__") == "click.utils"


def _show_version(context: click.Context, _option: click.Parameter, asked: bool) -> None:
    if not asked or context.resilient_parsing:
        return
    from importlib import metadata

    try:
        version = metadata.version("hpcpod")
    except metadata.PackageNotFoundError:
        version = "unknown (not installed)"
    click.echo(f"hpcpod {version}")
    context.exit()


@click.command(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_version,
    help="Print the version.",
)
@click.option("--debug", is_flag=True, expose_value=False, help="Show tracebacks of errors.")
def hpcpod() -> None:
    """Start verified container images in batch jobs: one rootless pod per node, and the ranks in it."""


def print_error(error: HpcpodError) -> None:
    """Two lines on stderr: what is wrong, and what to do."""
    click.echo(error.lines(), nl=False, err=True)


def _is_debug(words: Sequence[str]) -> bool:
    """Whether --debug is among hpcpod's own words; after -- they are the program's."""
    own = words[: words.index("--")] if "--" in words else words
    return "--debug" in own


def main() -> NoReturn:
    """Run the command line and exit with its status."""
    debug = _is_debug(sys.argv[1:])
    clear_up_on_signals()
    try:
        status = hpcpod.main(prog_name="hpcpod", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        # `run` keeps 125 for itself and leaves all else to the program (podman-run(1), exit status)
        sys.exit(EXIT_HPCPOD if sys.argv[1:2] == ["run"] else error.exit_code)
    except click.exceptions.Abort:
        sys.exit(130)
    except Exception as error:
        if debug:
            import traceback

            traceback.print_exception(error)
        of_output = _is_of_output(error)
        if of_output:
            _give_up_output()
        known = as_hpcpod_error(error, "standard output" if of_output else "input or output")
        print_error(known)
        sys.exit(known.exit_code)
    sys.exit(status if isinstance(status, int) else 0)
