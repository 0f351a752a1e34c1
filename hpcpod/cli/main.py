# SPDX-License-Identifier: Apache-2.0
"""The command ``hpcpod``: its words, loaded when they are called for, and how errors end it."""

from __future__ import annotations

import importlib
import sys
from typing import NoReturn

import click

from hpcpod.errors import EXIT_HPCPOD, HpcpodError

_COMMANDS = {
    "doctor": ("hpcpod.cli.doctor", "doctor"),
    "gc": ("hpcpod.cli.gc", "gc"),
    "image": ("hpcpod.cli.image", "image"),
    "plan": ("hpcpod.cli.run", "plan"),
    "report": ("hpcpod.cli.report", "report"),
    "run": ("hpcpod.cli.run", "run"),
}


class _Lazy(click.Group):
    """A group that imports a command when it is used: `hpcpod report` need not load the image reader."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, name = _COMMANDS[cmd_name]
        command: click.Command = getattr(importlib.import_module(module), name)
        return command


@click.command(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="hpcpod", message="hpcpod %(version)s")
def hpcpod() -> None:
    """Start verified container images in batch jobs: one rootless pod per node, and the ranks in it."""


def print_error(error: HpcpodError) -> None:
    """Two lines on stderr: what is wrong, and what to do."""
    click.echo(error.lines(), nl=False, err=True)


def main() -> NoReturn:
    """Run the command line and exit with its status."""
    debug = "--debug" in sys.argv
    try:
        status = hpcpod.main(prog_name="hpcpod", standalone_mode=False)
    except HpcpodError as error:
        if debug:
            raise
        print_error(error)
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        # `run` keeps 125 for itself and leaves all else to the program (podman-run(1), exit status)
        sys.exit(EXIT_HPCPOD if sys.argv[1:2] == ["run"] else error.exit_code)
    except click.exceptions.Abort:
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(141)
    sys.exit(status if isinstance(status, int) else 0)
