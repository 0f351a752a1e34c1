# SPDX-License-Identifier: Apache-2.0
"""What stands, and must not stand, in the text of files."""

from __future__ import annotations

import os
import re
import subprocess
import sys

from tests.lint.sources import ROOT, shown, sources, texts

LICENCE = "SPDX-License-Identifier: Apache-2.0"
UNFINISHED = re.compile(r"\b(?:TO" r"DO|FIX" r"ME|XX" r"X)\b")


def lines_that_match(pattern: re.Pattern[str]) -> list[str]:
    """FILE:LINE: TEXT of each line in which the pattern is found."""
    return [
        f"{shown(path)}:{number}: {line.strip()}"
        for path in texts()
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if pattern.search(line)
    ]


def test_every_source_names_its_licence() -> None:
    heads = {shown(path): path.read_text().splitlines()[:2] for path in sources()}
    without = [name for name, head in heads.items() if head and not any(LICENCE in line for line in head)]
    assert not without, f"no '{LICENCE}' in the first lines of: {without}"


def test_nothing_is_left_for_later() -> None:
    found = lines_that_match(UNFINISHED)
    assert not found, "\n".join(found)


def _package_hosts() -> set[str]:
    """The hosts and directories that this machine's pip is configured to ask."""
    done = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=False
    )
    configured = done.stdout + "".join(f" {value}" for name, value in os.environ.items() if "INDEX" in name)
    places = re.findall(r"(?:https?://(?:[^/@\s']*@)?([\w.:-]+)|(?:file://)?(/[\w./-]+))", configured)
    return {place for pair in places for place in pair if place and not place.startswith("/etc/")}


def machine_places() -> list[str]:
    """Names that mean something on this machine only."""
    home = os.path.expanduser("~")
    places = {*_package_hosts(), sys.prefix, home, str(ROOT), str(ROOT.parent)}
    return sorted(place for place in places if len(place) > 4 and place not in {"/root", "/home", "/var/tmp"})


def test_no_place_of_one_machine() -> None:
    places = "|".join(rf"(?<![\w.}}-]){re.escape(place)}(?![\w-])" for place in machine_places())
    found = lines_that_match(re.compile(places))
    assert not found, "\n".join(found)


def test_lines_end_cleanly() -> None:
    spaces = lines_that_match(re.compile(r"[ \t\r]$"))
    endless = [shown(path) for path in texts() if not (path.read_text() or "\n").endswith("\n")]
    assert not spaces, "white space at the end of a line:\n" + "\n".join(spaces)
    assert not endless, f"no newline at the end of: {endless}"
