# SPDX-License-Identifier: Apache-2.0
"""passwd and group files of a pod: the image's, with the user's own entries."""

from __future__ import annotations

import grp
import pwd
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from hpcpod.frozen import replace
from hpcpod.launcher.facts import user_facts
from hpcpod.launcher.plan import merge_group, merge_passwd
from tests.unit.launcher.worlds import GROUP, PASSWD, USER


def test_the_users_line_is_added() -> None:
    assert merge_passwd(PASSWD, USER) == PASSWD + "alice:x:1001:1001:alice:/home/alice:/bin/bash\n"


def test_lines_of_the_same_name_or_id_give_way() -> None:
    image = "alice:x:7:7::/:/bin/sh\nbob:x:1001:5::/:/bin/sh\nalicea:x:8:8::/:/bin/sh\n"
    lines = merge_passwd(image, USER).splitlines()
    assert [line.split(":")[0] for line in lines] == ["alicea", "alice"]


def test_an_image_without_accounts() -> None:
    assert merge_passwd("", USER).count("\n") == 1
    assert merge_group("", USER) == "alice:x:1001:alice\ng27:x:27:alice\n"


def test_groups_of_the_same_name_or_id_give_way() -> None:
    image = GROUP + "sudo:x:27:smith\nalice:x:500:\n"
    assert merge_group(image, USER) == GROUP + "alice:x:1001:alice\ng27:x:27:alice\n"


def test_a_home_that_would_break_the_line_is_left_out() -> None:
    assert merge_passwd("", replace(USER, home="/a:b\nroot::0:0::/:")).endswith(":alice:/:/bin/bash\n")


@given(st.text(alphabet="a:0\n\x0b\x1c\x85\u2028# ", max_size=40))
def test_odd_files_of_images_stay_line_by_line(text: str) -> None:
    for merged, colons in ((merge_passwd(text, USER), 6), (merge_group(text, USER), 3)):
        assert all(line.count(":") == colons for line in merged.rstrip("\n").split("\n"))


def test_the_kernels_reader_takes_the_files(tmp_path: Path) -> None:
    (tmp_path / "passwd").write_text(merge_passwd(PASSWD, USER))
    fields = [line.split(":") for line in (tmp_path / "passwd").read_text().splitlines()]
    assert fields[-1][0] == "alice" and fields[-1][2] == "1001"


def test_facts_of_the_present_user(tmp_path: Path) -> None:
    facts = user_facts({"HOME": str(tmp_path)})
    try:
        assert facts.name == pwd.getpwuid(facts.uid).pw_name
        assert facts.groups[0] == (facts.gid, grp.getgrgid(facts.gid).gr_name)
    except KeyError:
        assert facts.name == f"u{facts.uid}"
    assert facts.home == str(tmp_path)
    assert user_facts({"HOME": str(tmp_path / "none")}).home is None
    assert user_facts({"HOME": "relative"}).home is None
