# SPDX-License-Identifier: Apache-2.0
"""The documentation agrees with the program: commands, options, make targets, links."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from hpcpod.cli.main import hpcpod
from hpcpod.images.limits import DEFAULT_LIMITS
from hpcpod.images.sources.reference import parse_reference
from hpcpod.launcher.options import RUN_OPTIONS
from hpcpod.launcher.request import split_words
from hpcpod.settings import parse_settings
from hpcpod.sizes import parse_size
from tests import needs
from tests.conftest import TIERS
from tests.lint.sources import FILES, ROOT, shown

PAGES = [path for path in FILES if path.suffix == ".md"]
MANUAL = ROOT / "docs" / "man"
HELP = {"--help", "-h"}

_BLOCK = re.compile(r"^([ ]*)```console\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\((?!https?:)([^)#\s]+)")
_ENDS_COMMAND = {"&&", "||", "|", ";", "&"}


def documented_commands() -> Iterator[tuple[str, list[str]]]:
    """Each command that a page shows after ``$``, as words, with the page's name."""
    for page in PAGES:
        for block in _BLOCK.finditer(page.read_text()):
            for line in block.group(2).splitlines():
                if line.strip().startswith("$ "):
                    yield shown(page), shlex.split(line.strip()[2:], comments=True)


def hpcpod_calls() -> Iterator[tuple[str, list[str]]]:
    """What follows ``hpcpod`` in those commands, up to the next shell operator."""
    for page, words in documented_commands():
        while "hpcpod" in words:
            words = words[words.index("hpcpod") + 1 :]  # noqa: PLW2901
            end = next((i for i, word in enumerate(words) if word in _ENDS_COMMAND), len(words))
            yield page, words[:end]


def commands(
    group: click.Group, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command below the group, by the words that name it."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


COMMANDS = dict(commands(hpcpod))


def options_of(command: click.Command) -> set[str]:
    """All spellings of a command's options, those of --help left out."""
    parameters = command.get_params(click.Context(command))
    return {
        name
        for item in parameters
        if isinstance(item, click.Option)
        for name in (*item.opts, *item.secondary_opts)
    } - HELP


def page_of(path: tuple[str, ...]) -> Path:
    """The manual page of a command; those of a group share one."""
    return MANUAL / f"hpcpod-{path[0]}.1.md"


def check_call(words: list[str]) -> None:
    """Raise where hpcpod would not accept these words."""
    if not words or words[0] in ("--help", "--version"):
        return
    path = next(path for path in COMMANDS if tuple(words[: len(path)]) == path)
    rest = words[len(path) :]
    if path in (("run",), ("plan",)):
        _, rest = split_words([word for word in rest if word != "--json"])
        if rest[0] != "…":
            parse_reference(rest[0])
    else:
        command = COMMANDS[path]
        command.make_parser(click.Context(command)).parse_args(rest)


def test_commands_in_the_documentation_are_accepted() -> None:
    wrong = []
    for page, words in hpcpod_calls():
        try:
            check_call(words)
        except Exception as error:  # whatever it is, it belongs into the list
            wrong.append(f"{page}: hpcpod {shlex.join(words)}: {error or type(error).__name__}")
    assert not wrong, "\n".join(wrong)


def test_make_targets_in_the_documentation_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {(page, words[1]) for page, words in documented_commands() if words[0] == "make"}
    assert named
    assert not [(page, target) for page, target in named if target not in targets]


def test_links_lead_somewhere() -> None:
    broken = [
        f"{shown(page)}: {link}"
        for page in PAGES
        for link in _LINK.findall(page.read_text())
        if not (page.parent / link).exists()
    ]
    assert not broken, "\n".join(broken)


@pytest.mark.parametrize("path", sorted(COMMANDS), ids=" ".join)
def test_manual_page_lists_every_option(path: tuple[str, ...]) -> None:
    text = page_of(path).read_text()
    missing = [name for name in sorted(options_of(COMMANDS[path])) if f"**{name}**" not in text]
    assert not missing, f"{shown(page_of(path))}: no {missing} of hpcpod {' '.join(path)}"
    assert path[-1] in text


@pytest.mark.parametrize("word", sorted({path[0] for path in COMMANDS}))
def test_manual_page_lists_no_other_option(word: str) -> None:
    known = {name for path, command in COMMANDS.items() if path[0] == word for name in options_of(command)}
    page = page_of((word,))
    section = page.read_text().partition("## Options")[2].partition("\n## ")[0]
    listed = set(re.findall(r"^\*\*(-[\w-]+)\*\*", section, re.MULTILINE))
    listed |= set(re.findall(r", \*\*(--[\w-]+)\*\*", section))
    assert listed <= known | HELP | {"--json"}, f"{shown(page)}: {sorted(listed - known)}"


def test_every_command_is_in_the_overview() -> None:
    text = (MANUAL / "hpcpod.1.md").read_text()
    missing = [path[0] for path in COMMANDS if f"(hpcpod-{path[0]}.1.md)" not in text]
    assert not missing


def test_manual_page_of_run_says_what_values_mean() -> None:
    text = (MANUAL / "hpcpod-run.1.md").read_text()
    missing = [o.name for o in RUN_OPTIONS if o.metavar and f"**--{o.name}** *{o.metavar}*" not in text]
    assert not missing


def test_tiers_are_described() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    assert not [tier for tier in TIERS if f"`tests/{tier}`" not in text]


def test_needs_of_tests_have_probes() -> None:
    named = {
        (shown(path), name)
        for path in FILES
        if path.name.startswith("test_") and path.suffix == ".py"
        for call in re.findall(r"mark\.needs\(([^)]*)\)", path.read_text())
        for name in re.findall(r'"([^"]+)"', call)
    }
    assert not [(path, name) for path, name in sorted(named) if name not in needs.PROBES]


def test_system_packages_are_listed_once_per_group() -> None:
    rows = [
        line.split()[:2]
        for line in (ROOT / "tests" / "setup" / "packages").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    assert len(rows) == len({tuple(row) for row in rows})
    assert all(
        "#" in line for line in (ROOT / "tests" / "setup" / "packages").read_text().splitlines() if line
    )


def test_every_name_of_an_error_is_explained() -> None:
    """The words in brackets: class attributes in Python, the third argument of fail() in C."""
    text = (ROOT / "docs" / "howto" / "troubleshooting.md").read_text()
    names = set(
        re.findall(r'^    slug = "([a-z-]+)"', (ROOT / "hpcpod" / "errors.py").read_text(), re.MULTILINE)
    )
    for path in FILES:
        if path.suffix == ".c" and path.parent.name == "native" and "tests" not in path.parts:
            names |= set(re.findall(r'fail(?:_errno)?\([^"]*?"([a-z-]+)", "', path.read_text()))
    assert len(names) > 20
    assert not [name for name in sorted(names) if f"`[{name}]`" not in text and f"`{name}`" not in text]


def test_manual_page_of_the_configuration_lists_every_limit() -> None:
    text = (MANUAL / "hpcpod.toml.5.md").read_text()
    rows = dict(re.findall(r"^\| \*\*(\w+)\*\* \| `([^`]+)` \|", text, re.MULTILINE))
    listed = {name: parse_size(default.strip('"').replace("_", ""), name) for name, default in rows.items()}
    assert listed == vars(DEFAULT_LIMITS)


def test_configuration_in_the_documentation_is_accepted() -> None:
    examples = [
        (shown(page), block)
        for page in PAGES
        for block in re.findall(r"^```toml\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    ]
    assert examples
    for page, text in examples:
        parse_settings(text.encode(), page)
