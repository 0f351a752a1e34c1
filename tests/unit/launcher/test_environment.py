# SPDX-License-Identifier: Apache-2.0
"""What of the node's and the image's environment a program gets."""

from __future__ import annotations

import pytest

from hpcpod.errors import UsageError
from hpcpod.frozen import replace
from hpcpod.launcher.environment import DEFAULT_PATH, environment_ops
from hpcpod.model import EnvDefault, EnvKeep, EnvOp, EnvSet, EnvUnset, ImageConfig, VerifiedImage
from tests.unit.launcher.worlds import IMAGE


def result(
    inherited: dict[str, str], *asked: str, launch: tuple[EnvOp, ...] = (), image=IMAGE
) -> dict[str, str]:
    """The operations, applied in order as native/environment.c does."""
    ops = environment_ops(image, launch, asked)
    kept = {op.name for op in ops if isinstance(op, EnvKeep)}
    found = dict(inherited)
    for op in ops:
        if isinstance(op, EnvSet):
            found[op.name] = op.value
        elif isinstance(op, EnvDefault):
            found.setdefault(op.name, op.value)
        elif isinstance(op, EnvUnset):
            star = op.pattern.endswith("*")
            for name in [n for n in found if (n.startswith(op.pattern[:-1]) if star else n == op.pattern)]:
                if name not in kept:
                    del found[name]
    return found


def test_the_jobs_variables_pass_and_the_nodes_paths_do_not() -> None:
    node = {
        "SLURM_JOB_ID": "1", "OMP_NUM_THREADS": "4", "CUDA_VISIBLE_DEVICES": "0", "PMIX_RANK": "3",
        "HOME": "/home/a", "LD_LIBRARY_PATH": "/opt/x", "LD_PRELOAD": "x.so", "PYTHONPATH": "/x",
        "PYTHONHOME": "/x",
        "BASH_ENV": "/x", "BASH_FUNC_module%%": "() { :; }", "MODULEPATH": "/x", "LMOD_CMD": "x",
        "PERL5LIB": "/x", "PATH": "/node",
        "XDG_RUNTIME_DIR": "/run/user/1",
    }  # fmt: skip
    found = result(node)
    kept = {"SLURM_JOB_ID", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "PMIX_RANK", "HOME"}
    assert {name for name in node if found.get(name) == node[name]} == kept
    assert found["PATH"] == "/opt/app/bin:/usr/bin:/bin"
    assert found["ODD"] == "a=b\nc"
    assert (found["HPCPOD_IMAGE"], found["HPCPOD_DIGEST"]) == (IMAGE.reference, IMAGE.digest)


def test_an_image_without_a_path_gets_the_usual_one() -> None:
    plain = replace(IMAGE, config=ImageConfig())
    assert result({"PATH": "/node"}, image=plain)["PATH"] == DEFAULT_PATH


def test_a_missing_home_is_the_root() -> None:
    assert result({}, image=replace(IMAGE, config=ImageConfig()))["HOME"] == "/"


def saying(**variables: str) -> VerifiedImage:
    return replace(IMAGE, config=ImageConfig(env=tuple(variables.items())))


@pytest.mark.parametrize(
    "name",
    [
        "SLURM_PROCID", "SLURM_JOB_ID", "PMI_RANK", "PMI_FD", "PMIX_RANK", "PMIX_SERVER_URI2",
        "PMIX_SECURITY_MODE", "OMPI_COMM_WORLD_SIZE", "OMPI_UNIVERSE_SIZE", "PALS_RANKID",
        "MPI_LOCALRANKID", "HPCPOD_NTASKS", "PWD", "OLDPWD",
    ],
)  # fmt: skip
def test_no_image_says_which_rank_this_is(name: str) -> None:
    image = saying(**{name: "9"})
    assert result({name: "3"}, image=image)[name] == "3"
    assert name not in result({}, image=image)
    assert result({name: "3"}, f"{name}=5", image=image)[name] == "5"


@pytest.mark.parametrize("name", ["HOME", "USER", "LOGNAME", "TMPDIR", "PMIX_MCA_gds"])
def test_an_image_may_say_what_the_rank_does_not(name: str) -> None:
    image = saying(**{name: "image"})
    assert result({name: "rank"}, image=image)[name] == "rank"
    assert result({}, image=image)[name] == "image"


@pytest.mark.parametrize("name", ["SHELL", "OMPI_MCA_btl", "SLURMISH", "HOMEPAGE", "LD_LIBRARY_PATH"])
def test_the_rest_is_the_images(name: str) -> None:
    assert result({name: "rank"}, image=saying(**{name: "image"}))[name] == "image"


def test_asked_for_wins_over_image_and_launch() -> None:
    launch = (EnvSet("WIRE", "launch"), EnvSet("LANG", "launch"))
    found = result({"WIRE": "node"}, "WIRE=asked", "NEW=a=b", "EMPTY=", launch=launch)
    assert (found["WIRE"], found["LANG"], found["NEW"], found["EMPTY"]) == ("asked", "launch", "a=b", "")


def test_a_name_alone_keeps_the_nodes_value() -> None:
    node = {"LD_LIBRARY_PATH": "/opt/x", "LANG": "de_DE", "PATH": "/node", "LD_PRELOAD": "x"}
    found = result(node, "LD_LIBRARY_PATH", "LANG", "PATH")
    assert {name: found.get(name) for name in node} == {**node, "LD_PRELOAD": None}


@pytest.mark.parametrize("word", ["", "=", "=x", "1A=x", "A-B=x", "A B", "A\n=x", "A*"])
def test_what_is_no_variable(word: str) -> None:
    with pytest.raises(UsageError, match=r"is not a variable's name|no name before ="):
        environment_ops(IMAGE, (), [word])
