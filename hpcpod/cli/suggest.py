# SPDX-License-Identifier: Apache-2.0
"""Groups of commands that say which word was perhaps meant."""

from __future__ import annotations

import difflib

import click

_OTHERS = {
    "delete": "rm", "exec": "run", "fetch": "pull", "images": "list", "info": "doctor",
    "ls": "list", "prune": "gc", "remove": "rm", "rmi": "rm", "shell": "run", "show": "inspect",
    "start": "run", "unmount": "umount",
}  # fmt: skip
"""Words of other programs for what is done here."""


class Suggesting(click.Group):
    """A group whose error for an unknown word has a second sentence."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As its base.  Raises click.UsageError."""
        word = args[0]
        if self.get_command(ctx, word) is not None or word.startswith("-"):
            return super().resolve_command(ctx, args)
        here = ctx.command_path
        if word == "help":
            more = f"Help: {here} --help, {here} COMMAND --help."
        else:
            near = self.guess(ctx, word)
            more = f"Did you mean '{near}'?" if near else f"{here} --help lists the commands."
        raise click.UsageError(f"No such command {word!r}. {more}", ctx)

    def guess(self, ctx: click.Context, word: str) -> str:
        """The command whose name is like this word, or means the same elsewhere; empty for none."""
        names = self.list_commands(ctx)
        if word in names:
            return word
        if _OTHERS.get(word) in names:
            return _OTHERS[word]
        return next(iter(difflib.get_close_matches(word, names, n=1)), "")
