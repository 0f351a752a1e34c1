# SPDX-License-Identifier: Apache-2.0
"""``hpcpod run`` as Python sees it (help, and what the C front could not read), and ``hpcpod plan``."""

from __future__ import annotations

import json
import os
from enum import Enum
from typing import get_args

import click

from hpcpod.errors import UsageError
from hpcpod.frozen import replace
from hpcpod.launcher.options import PLAN_OPTIONS, RUN_OPTIONS, Option
from hpcpod.launcher.request import parse_request, split_words
from hpcpod.log import shown
from hpcpod.model import Bind, EnvOp, Mount, NodePlan, Rootfs
from hpcpod.scheduler_plugins import recognise

_OPERATIONS = (*get_args(Mount), *get_args(EnvOp), *get_args(Rootfs))
_RAW = {
    "ignore_unknown_options": True,
    "allow_interspersed_args": False,
    "help_option_names": ["-h", "--help"],
}


def _documented(command: click.Command, options: tuple[Option, ...]) -> None:
    """Put the option table into the command's help.  The words are read by launcher.request, not by click."""
    for option in options:
        names = [f"--{option.name}", *([f"-{option.short}"] if option.short else [])]
        command.params.append(
            click.Option(
                names,
                is_flag=not option.metavar,
                metavar=option.metavar or None,
                multiple=option.multiple,
                help=option.help,
                expose_value=False,
            )
        )


def _image_and_program(command: str, rest: list[str]) -> tuple[str, list[str]]:
    """The reference and the program's words, in what follows the options.  Raises UsageError."""
    usage = f"hpcpod {command} [OPTIONS] IMAGE [--] [PROGRAM [ARGUMENTS]]"
    if rest[:1] == ["--"] and len(rest) > 1:
        raise UsageError(f"{command}: -- before the image", hint=f"-- goes after the image: {usage}")
    if not rest or rest[0] in ("", "--"):
        raise UsageError(f"{command}: no image given", hint=usage)
    if rest[1:2] == ["--"]:
        return rest[0], rest[2:]
    if len(rest) > 1 and rest[1].startswith("-"):
        raise UsageError(
            f"{command}: {rest[1]} after the image",
            hint="options go before the image; a program that begins with - goes after --",
        )
    return rest[0], rest[1:]


def _explain(words: tuple[str, ...]) -> None:
    """Raise the UsageError that says why the front could not carry out `run` with these words."""
    _, rest = parse_request(words, os.environ)
    _image_and_program("run", rest)
    raise UsageError("run: started without the front", hint="run the installed command hpcpod, not python -m")


def _asks_for_help(words: list[str]) -> bool:
    """Whether --help or -h is among the options; behind the image they are the program's."""
    try:
        values, _ = split_words(words, (*PLAN_OPTIONS, Option("help", "", short="h")))
    except UsageError:  # said where it is looked at
        return words[:1] in (["--help"], ["-h"])
    return "help" in values


class _RunCommand(click.Command):
    """Help by click; everything else by the one parser that knows the table."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if _asks_for_help(args):
            return super().parse_args(ctx, ["--help"])
        ctx.params["words"] = tuple(args)
        return []


@click.command(cls=_RunCommand, context_settings=_RAW)
@click.argument("words", nargs=-1, metavar="IMAGE [--] [PROGRAM [ARGUMENTS]...]")
def run(words: tuple[str, ...]) -> None:
    """Run a program in the pod of an image.

    It is a rank where the scheduler started hpcpod as one, and else runs alone.  Without PROGRAM, the
    image's own command runs.
    """
    _explain(words)


def _plain(value: object) -> object:
    """A plan as JSON knows it: enums by value, sets sorted, bytes as hexadecimal."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, frozenset):
        return sorted(str(_plain(item)) for item in value)
    if isinstance(value, bytes):
        return value.hex()
    if hasattr(value, "__match_args__"):
        fields = {name: _plain(item) for name, item in vars(value).items()}
        return {"op": type(value).__name__, **fields} if type(value) in _OPERATIONS else fields
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value


def _warn_of_missing(plan: NodePlan) -> None:
    """Name the binds that would make a run fail here."""
    for mount in plan.pod.mounts:
        if isinstance(mount, Bind) and not mount.optional and not os.path.exists(mount.source):
            click.echo(f"hpcpod: warning: bind {shown(mount.source)}: no such file on this node", err=True)


@click.command(cls=_RunCommand, context_settings=_RAW)
@click.argument("words", nargs=-1, metavar="IMAGE [--] [PROGRAM [ARGUMENTS]...]")
def plan(words: tuple[str, ...]) -> None:
    """Show what `hpcpod run` with these words would do here.

    Nothing is started; the image is brought into the store if it is not there.
    """
    from hpcpod.cli.plan_text import plan_lines
    from hpcpod.launcher.prepare import plan_node

    values, _ = split_words(words, PLAN_OPTIONS)
    request, rest = parse_request(words, os.environ, PLAN_OPTIONS)
    reference, program = _image_and_program("plan", rest)
    context = recognise(os.environ, cwd=os.getcwd(), node=os.uname().nodename)
    node_plan, _ = plan_node(request, reference, os.environ, context)
    if program:
        node_plan = replace(node_plan, rank=replace(node_plan.rank, command=tuple(program)))
    _warn_of_missing(node_plan)
    if "json" in values:
        click.echo(json.dumps(_plain(node_plan), indent=2))
    else:
        click.echo("\n".join(plan_lines(node_plan)))


_documented(run, RUN_OPTIONS)
_documented(plan, PLAN_OPTIONS)
