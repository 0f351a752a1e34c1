# SPDX-License-Identifier: Apache-2.0
"""Nothing is mounted over the root of a pod: not by a link of the image, not by a variable of the rank.

A rank that joins a pod enters what lies on top of the root (setns(2)), so these are tests of shared pods too.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.integration.pod.conftest import Pods, step
from tests.integration.pod.image import Tree, write_layout

pytestmark = pytest.mark.needs("plain", "userns", "native", "overlay")

LIST = ("sh", "-c", "ls -a /; ls -a /..")
STEP = step(0, 2)


def shows_the_image(listing: str) -> bool:
    names = set(listing.split())
    return "opt" in names and not names & {"lib32", "media", "boot"}


@pytest.mark.parametrize("shared", [{}, STEP], ids=["alone", "shared"])
@pytest.mark.parametrize("target", ["tmp", "var/tmp", "dev"])
@pytest.mark.parametrize("link", ["/", ".", "/.", "../.."])
def test_a_link_of_the_image_does_not_put_the_node_on_the_root(
    plain_pods: Pods, layouts: Path, tree: Tree, target: str, link: str, shared: Mapping[str, str]
) -> None:
    if target == "var/tmp" and link == ".":
        link = "../."
    changed = copy.deepcopy(tree).without(target)
    changed.links[target] = link
    name = f"root-{target}-{link}-{len(shared)}".replace("/", "_")
    reference = write_layout(layouts / name, changed, env={"PATH": "/bin"})
    done = plain_pods.run(*LIST, reference=reference, env=shared, options=["--no-home"], cwd="/")
    if "leads to the root of the image" in done.stderr:
        assert done.returncode == 125
    else:  # the link leads to a directory of the image
        assert (done.returncode, done.stderr) == (0, "")
        assert shows_the_image(done.stdout)


@pytest.mark.parametrize("shared", [{}, STEP], ids=["alone", "shared"])
@pytest.mark.parametrize("variable", ["HOME", "TMPDIR", "PMIX_SERVER_TMPDIR"])
@pytest.mark.parametrize(
    "value", ["/", "//", "/.", "/home/..", "/usr", "/usr/", "/usr/../etc", "/var", "tmp", ""]
)
def test_a_variable_does_not_hide_the_image(
    plain_pods: Pods, variable: str, value: str, shared: Mapping[str, str]
) -> None:
    listing = plain_pods.out(*LIST, env={**shared, variable: value}, cwd="/")
    assert shows_the_image(listing)
    script = "test ! -e /usr/share && test ! -e /var/lib && echo own"
    assert plain_pods.out("sh", "-c", script, env={**shared, variable: value}, cwd="/") == "own"


def test_a_temporary_directory_of_the_job_is_bound(plain_pods: Pods) -> None:
    there = plain_pods.account.home / "scratch"
    there.mkdir()
    there.chmod(0o777)
    for value in (str(there), f"{there}/"):
        env = {**STEP, "TMPDIR": value, "SLURM_STEP_ID": str(len(value))}
        plain_pods.out("sh", "-c", "echo x >$TMPDIR/made", env=env, options=["--no-home"], cwd="/")
        assert (there / "made").read_text() == "x\n"


def test_the_image_names_no_descriptor_to_keep(plain_pods: Pods, layouts: Path, tree: Tree) -> None:
    reference = write_layout(layouts / "pmi-fd", tree, env={"PATH": "/bin", "PMI_FD": "7"})
    script = 'exec 7</opt 8</opt; exec "$@"'
    before = ["sh", "-c", script, "sh"]
    done = plain_pods.run("sh", "-c", "ls /proc/$$/fd", reference=reference, before=before)
    assert set(done.stdout.split()) == {"0", "1", "2"}, done.stderr
