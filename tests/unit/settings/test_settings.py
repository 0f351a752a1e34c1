# SPDX-License-Identifier: Apache-2.0
"""hpcpod.toml: every key's values, and one clear line for everything that is wrong."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcpod.errors import HpcpodError, UsageError
from hpcpod.images.limits import Limits, configured
from hpcpod.model import FileStamp
from hpcpod.settings import Quota, Settings, parse_settings, read_settings
from tests import needs

PATH = "/etc/hpcpod/hpcpod.toml"
STAMP = FileStamp(PATH, 0, 0, 0, 0, 0)


def parse(text: str) -> Settings:
    return parse_settings(text.encode(), PATH)


def said(text: str | bytes) -> str:
    """The message that this file gives."""
    raw = text if isinstance(text, bytes) else text.encode()
    with pytest.raises(UsageError) as caught:
        configured(parse_settings(raw, PATH, STAMP))
    lines = caught.value.lines().splitlines()
    assert 1 <= len(lines) <= 2 and all(line.isprintable() for line in lines)
    assert lines[0].startswith(f"hpcpod: configuration {PATH}: ") and lines[0].endswith(" [usage]")
    return caught.value.message


def test_an_empty_file_changes_nothing() -> None:
    assert parse("") == parse("[store]\n[site]\n[user]\n[limits]\n") == Settings()


def test_every_key() -> None:
    text = """
    [store]
    rootfs = "squashfs"
    high = 90
    low = 50
    [site]
    store = "/scratch/hpcpod/"
    run = "/run/other"
    account = "unpacker"
    quota = "200G"
    [user]
    quota = "40%"
    [limits]
    bytes_out = "1G"
    entries = 1000
    """
    assert parse(text) == Settings(
        site="/scratch/hpcpod",
        site_run="/run/other",
        account="unpacker",
        rootfs="squashfs",
        site_quota=Quota(bytes=200 << 30),
        user_quota=Quota(percent=40),
        high=90,
        low=50,
        limits=(("bytes_out", 1 << 30), ("entries", 1000)),
    )
    assert configured(parse(text)) == Limits(bytes_out=1 << 30, entries=1000)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[site]\naccount = 65433", Settings(account="65433")),
        ('[site]\nstore = ""', Settings(site="")),
        ("[site]\nquota = 2000000", Settings(site_quota=Quota(bytes=2000000))),
        ('[user]\nquota = "100%"', Settings(user_quota=Quota(percent=100))),
        ("[store]\nhigh = 80\nlow = 80", Settings(high=80, low=80)),
    ],
)
def test_values(text: str, expected: Settings) -> None:
    assert parse(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[stor]", "stor: unknown"),
        ("rootfs = 'dir'", "rootfs: unknown"),
        ("store = 'dir'", "store: unknown"),
        ("[store]\nquota = '1G'", "[store] quota: unknown"),
        ("[site]\nrootfs = 'dir'", "[site] rootfs: unknown"),
        (
            "[store]\nrootfs = 'ext4'",
            "[store] rootfs: expected one of auto, dir, squashfs, erofs, got 'ext4'",
        ),
        ("[store]\nrootfs = 7", "[store] rootfs: expected str, got 7"),
        ("[store]\nhigh = 0", "[store] high: expected a percentage, 1 to 100, got 0"),
        ("[store]\nhigh = 101", "[store] high: expected a percentage, 1 to 100, got 101"),
        ("[store]\nhigh = true", "[store] high: expected int, got True"),
        ("[store]\nhigh = '90'", "[store] high: expected int, got '90'"),
        ("[store]\nlow = -1", "[store] low: expected a percentage, 1 to 100, got -1"),
        ("[store]\nlow = 96", "[store] low: expected a number not above high, got 96"),
        (
            "[site]\nstore = 'x'",
            "[site] store: expected an absolute path, or an empty text for none, got 'x'",
        ),
        ("[site]\nstore = ['/x']", "[site] store: expected str, got ['/x']"),
        ("[site]\nrun = 'run'", "[site] run: expected an absolute path"),
        ("[site]\naccount = 1.5", "[site] account: expected str or int, got 1.5"),
        ("[site]\naccount = false", "[site] account: expected str or int, got False"),
        ("[site]\nquota = '0%'", "[site] quota: expected a size such as 200G, or a percentage such as 40%"),
        ("[site]\nquota = '101%'", "[site] quota: expected a size such as 200G, or a percentage"),
        ("[site]\nquota = '5 %'", "[site] quota: expected a size such as 200G, or a percentage"),
        ("[user]\nquota = 0", "[user] quota 0: not a positive size"),
        ("[user]\nquota = 40", "[user] quota 40: 40 bytes, a unit is missing"),
        ("[site]\nquota = '512K'", "[site] quota 512K: less than 1M"),
        ("[user]\nquota = -5", "[user] quota -5: not a size"),
        ("[user]\nquota = 'much'", "[user] quota much: not a size"),
        ("[user]\nquota = 2021-01-01", "[user] quota: expected str or int, got datetime.date(2021, 1, 1)"),
        ("[limits]\nentries = 'x'", "[limits] entries x: not a size"),
        ("[limits]\nentrys = 1", "[limits] entrys: unknown"),
        ("[limits]\nentries = []", "[limits] entries: expected str or int, got []"),
        ("[store]\nhigh = 1\nhigh = 2", "not TOML: Cannot overwrite a value"),
        ("[store", "not TOML: "),
        ("[[store]]\nhigh = 5", "store: unknown"),
        ('"a\\u001b[31m\\n" = 1', "a\x1b[31m\n: unknown"),
        ("[store]\nhigh = " + "[" * 3000, "not TOML: "),
        (b"[store]\nrootfs = '\xff'", "not TOML: "),
    ],
)
def test_what_is_wrong_is_said_in_one_line(text: str | bytes, message: str) -> None:
    assert said(text).startswith(f"configuration {PATH}: {message}")


def test_limits_may_be_small() -> None:
    assert parse("[limits]\nlayers = 3\nfile_bytes = 100").limits == (("layers", 3), ("file_bytes", 100))


_KEYS = st.sampled_from(
    ["store", "site", "user", "limits", "rootfs", "high", "low", "quota", "run", "account"]
)
_SCALARS = st.one_of(
    st.integers(-(2**63), 2**63 - 1).map(str),
    st.booleans().map(lambda value: str(value).lower()),
    st.sampled_from(
        ["'auto'", "'erofs'", "'50%'", "'7G'", "'/x'", "''", "1979-05-27", "1e3", "[1]", "{a=1}"]
    ),
)


@given(st.lists(st.one_of(_KEYS.map("[{}]".format), st.tuples(_KEYS, _SCALARS).map(" = ".join)), max_size=8))
def test_any_file_gives_settings_or_one_clear_line(lines: list[str]) -> None:
    text = "\n".join(lines)
    try:
        settings = parse(text)
    except UsageError:
        said(text)
        return
    assert 0 < settings.low <= settings.high <= 100
    assert settings.site_run.startswith("/")


@given(st.binary(max_size=200))
def test_any_bytes(raw: bytes) -> None:
    try:
        parse_settings(raw, PATH)
    except UsageError:
        said(raw)


# --------------------------------------------------------------------------- the file


def written(path: Path, text: str = "[store]\nhigh = 70\nlow = 60\n", mode: int = 0o644) -> dict[str, str]:
    """The environment that names the file."""
    path.write_text(text)
    path.chmod(mode)
    return {"HPCPOD_CONFIG": str(path)}


def test_the_file_is_read_and_its_identity_kept(tmp_path: Path) -> None:
    path = tmp_path / "hpcpod.toml"
    settings = read_settings(written(path))
    assert (settings.high, settings.low) == (70, 60)
    assert settings.stamp is not None
    assert (settings.stamp.path, settings.stamp.ino) == (str(path), path.stat().st_ino)


def test_without_a_file_there_are_defaults() -> None:
    if not os.path.exists(PATH):
        none = Settings(stamp=FileStamp(PATH, 0, 0, 0, 0, 0))
        assert read_settings({}) == read_settings({"HPCPOD_CONFIG": ""}) == none


def refused(path: Path | str) -> str:
    with pytest.raises(HpcpodError) as caught:
        read_settings({"HPCPOD_CONFIG": str(path)})
    assert isinstance(caught.value, UsageError)
    return caught.value.message


def test_files_that_cannot_be_it(tmp_path: Path) -> None:
    assert refused(tmp_path / "x") == f"configuration {tmp_path}/x: not there (ENOENT)"
    assert refused(tmp_path) == f"configuration {tmp_path}: not a regular file"
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    assert refused(fifo) == f"configuration {fifo}: not a regular file"
    assert refused("hpcpod.toml") == "configuration hpcpod.toml: not an absolute path"
    big = tmp_path / "big"
    written(big, "[store]\n" + "# much\n" * 200_000)
    assert refused(big) == f"configuration {big}: longer than 1048576 bytes"


@pytest.mark.parametrize("mode", [0o664, 0o646, 0o666, 0o777])
def test_a_file_that_others_could_change(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "hpcpod.toml"
    written(path, mode=mode)
    assert refused(path).endswith(f"mode {mode:04o}: others could change it")


@pytest.mark.needs("root", "plain")
def test_a_file_of_somebody_else(tmp_path: Path) -> None:
    path = tmp_path / "hpcpod.toml"
    written(path)
    os.chown(path, needs.PLAIN_UID, needs.PLAIN_UID)
    assert refused(path).endswith(f"owner {needs.PLAIN_UID}, mode 0644: others could change it")
