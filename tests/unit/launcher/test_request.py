# SPDX-License-Identifier: Apache-2.0
"""The command line of ``hpcpod run``."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcpod.errors import UsageError
from hpcpod.launcher.options import RUN_OPTIONS
from hpcpod.launcher.request import RunRequest, parse_request, split_words
from hpcpod.sizes import parse_bytes, parse_size


def request(*words: str, **variables: str) -> RunRequest:
    parsed, rest = parse_request([*words, "oci:x"], variables)
    assert rest == ["oci:x"]
    return parsed


def test_nothing_asked_for_is_the_default() -> None:
    assert request() == RunRequest()


def test_all_options_at_once() -> None:
    words = ["-B", "/a", "--bind=/b:/c:ro", "--env", "A=1", "--env=B", "-w", "/w", "-n4", "--mpi", "pmix",
             "--writable-size", "1G", "--no-home", "--shm-size=64m", "--seccomp", "none", "--platform",
             "linux/arm64", "--preserve-fds", "2", "--debug"]  # fmt: skip
    assert request(*words) == RunRequest(
        binds=("/a", "/b:/c:ro"),
        env=("A=1", "B"),
        workdir="/w",
        ntasks=4,
        mpi="pmix",
        writable=1 << 30,
        home=False,
        shm_size=64 << 20,
        seccomp=False,
        platform="linux/arm64",
        preserve_fds=2,
        debug=True,
    )


def test_the_last_of_a_repeated_option_counts() -> None:
    assert request("--mpi=pmi2", "--mpi", "none", "-w/a", "-w", "/b").mpi == "none"
    assert request("-w/a", "-w", "/b").workdir == "/b"


def test_variables_count_as_if_given_first() -> None:
    asked = request("--bind", "/z", HPCPOD_BIND="/a,/b:/c:ro,optional,,/d:/e", HPCPOD_MPI="pmi2")
    assert asked.binds == ("/a", "/b:/c:ro,optional", "/d:/e", "/z")
    assert asked.mpi == "pmi2"
    assert request("--mpi=auto", HPCPOD_MPI="pmi2").mpi == "auto"


def test_writable_alone_has_a_size() -> None:
    assert request("--writable").writable == 256 << 20
    assert request("--writable", "--writable-size=1M").writable == 1 << 20


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--nothing"], "option --nothing: unknown"),
        (["-z"], "option -z: unknown"),
        (["--writable=yes"], "takes no value"),
        (["--debug=1"], "takes no value"),
        (["--bind="], "is empty"),
        (["--workdir", ""], "is empty"),
        (["--workdir", "rel"], "not an absolute path"),
        (["--ntasks", "0"], "not a positive number"),
        (["--ntasks", "-1"], "not a positive number"),
        (["--ntasks", "1_0"], "not a positive number"),
        (["--ntasks", "\u0663"], "not a positive number"),
        (["--ntasks", "9" * 5000], "not a positive number"),
        (["--mpi", "mpi"], "option --mpi mpi: unknown"),
        (["--seccomp", "off"], "option --seccomp off: unknown"),
        (["--writable-size", "0"], "not a positive size"),
        (["--writable-size", "much"], "not a size"),
        (["--shm-size", "9" * 5000], "not a size"),
        (["--writable-size", "2"], "option --writable-size 2: 2 bytes, a unit is missing"),
        (["--writable-size", "4095"], "4095 bytes, a unit is missing"),
        (["--writable-size", "4096"], "option --writable-size 4096: less than 1M"),
        (["--writable-size", "1023K"], "less than 1M"),
        (["--shm-size", "64"], "option --shm-size 64: 64 bytes, a unit is missing"),
        (["--shm-size", "64b"], "less than 1M"),
        (["--shm-size", "0"], "not a positive size"),
        (["--preserve-fds", "x"], "not a positive number"),
    ],
)
def test_wrong_words_are_named(words: list[str], expected: str) -> None:
    with pytest.raises(UsageError, match=expected):
        parse_request([*words, "oci:x"], {})


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("--writeable", "did you mean --writable?"),
        ("--bnd=/a", "did you mean --bind?"),
        ("--zzzz", "hpcpod run --help lists the options"),
        ("-z", "hpcpod run --help lists the options"),
    ],
)
def test_a_misspelt_option_is_guessed(word: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_request([word, "oci:x"], {})
    assert caught.value.hint == hint


def test_a_missing_unit_is_offered() -> None:
    with pytest.raises(UsageError) as caught:
        parse_request(["--writable-size", "2", "oci:x"], {})
    assert caught.value.hint == "--writable-size takes a number with K, M, G or T (powers of 1024): 2G, 2M"
    assert parse_bytes("4096", "x") == 4096


def test_a_missing_value_is_named() -> None:
    with pytest.raises(UsageError, match=r"--bind: lacks its value SRC\[:DST"):
        parse_request(["--bind"], {})


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("1", 1),
        ("1k", 1024),
        ("64M", 64 << 20),
        ("2g", 2 << 30),
        ("1TB", 1 << 40),
        ("5kb", 5120),
        ("7B", 7),
        ("512Mi", 512 << 20),
        ("1GiB", 1 << 30),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text, "x") == size


@pytest.mark.parametrize(
    "text", ["", "k", "b", "-1", "+1", "1.5G", "1 G", "1iB", "1Bi", "0x10", "1p", "1kk", "1e3", "\u0661"]
)
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(UsageError, match="not a size"):
        parse_size(text, "option --shm-size")


@given(st.text(max_size=12))
def test_a_size_is_a_number_or_an_error(text: str) -> None:
    with contextlib.suppress(UsageError):
        assert parse_size(text, "x") >= 0


_WORD = st.one_of(
    st.sampled_from([f"--{option.name}" for option in RUN_OPTIONS] + ["-", "--", "-B", "-n", "-w", "oci:x"]),
    st.text(max_size=6),
)


@given(
    st.lists(_WORD, max_size=8),
    st.dictionaries(st.sampled_from(["HPCPOD_BIND", "HPCPOD_MPI"]), st.text(max_size=8)),
)
def test_any_words_are_a_request_or_a_usage_error(words: list[str], variables: dict[str, str]) -> None:
    try:
        _, rest = parse_request(words, variables)
    except UsageError as error:
        assert "\n" not in error.message or any("\n" in word for word in [*words, *variables.values()])
    else:
        assert rest == words[len(words) - len(rest) :]


@given(st.lists(st.sampled_from(RUN_OPTIONS), max_size=6), st.data())
def test_what_is_written_with_or_without_equals_means_the_same(options: list, data: st.DataObject) -> None:
    joined: list[str] = []
    apart: list[str] = []
    for option in options:
        if not option.metavar:
            joined.append(f"--{option.name}")
            apart.append(f"--{option.name}")
            continue
        value = data.draw(st.text(min_size=1, max_size=5))
        joined.append(f"--{option.name}={value}")
        apart += [f"--{option.name}", value]
    assert split_words([*joined, "ref", "-x"]) == split_words([*apart, "ref", "-x"])
