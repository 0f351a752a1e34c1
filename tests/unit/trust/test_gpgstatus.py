# SPDX-License-Identifier: Apache-2.0
"""gpg's status lines: what is good, and that nothing else is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcpod.images.trust.gpgstatus import Outcome, parse_status

PRIMARY, SUBKEY = "A" * 40, "B" * 40
GOOD = [
    "NEWSIG",
    f"KEY_CONSIDERED {PRIMARY} 0",
    "SIG_ID x 2026-01-01 1",
    f"GOODSIG {SUBKEY[-16:]} me <me@example.com>",
    f"VALIDSIG {SUBKEY} 2026-01-01 1767225600 0 4 0 22 8 00 {PRIMARY}",
    f"KEY_CONSIDERED {PRIMARY} 0",
    "TRUST_ULTIMATE 0 always",
    "VERIFICATION_COMPLIANCE_MODE 23",
]


def status(*lines: str) -> bytes:
    return "".join(f"[GNUPG:] {line}\n" for line in lines).encode()


def parse(*lines: str) -> Outcome:
    return parse_status(status(*lines), ("00",))


def test_good() -> None:
    assert parse(*GOOD) == Outcome(True, "good", PRIMARY, SUBKEY, 0)
    assert (
        parse(*[line.replace("1767225600 0", "1767225600 1798761600") for line in GOOD]).until == 1798761600
    )


def changed(old: str, new: str) -> list[str]:
    return [line.replace(old, new) for line in GOOD]


BAD = {
    "nothing": [],
    "no data": ["NODATA 3"],
    "no GOODSIG": changed("GOODSIG", "SIG_ID"),
    "no VALIDSIG": changed("VALIDSIG", "SIG_ID"),
    "expired": changed("GOODSIG", "EXPSIG"),
    "expired key": changed("GOODSIG", "EXPKEYSIG"),
    "revoked key": changed("GOODSIG", "REVKEYSIG"),
    "bad": changed("GOODSIG", "BADSIG"),
    "unknown key": [f"ERRSIG {SUBKEY[-16:]} 22 8 00 1 9 {SUBKEY}", f"NO_PUBKEY {SUBKEY[-16:]}"],
    "short error": ["ERRSIG"],
    "two good": [*GOOD, *GOOD],
    "two valid": [*GOOD, GOOD[4]],
    "good and bad": [*GOOD, "BADSIG x"],
    "sha1": changed(" 22 8 00", " 22 2 00"),
    "md5": changed(" 22 8 00", " 22 1 00"),
    "unknown hash": changed(" 22 8 00", " 22 99 00"),
    "another class": changed(" 22 8 00", " 22 8 01"),
    "a key's own class": changed(" 22 8 00", " 22 8 13"),
    "decrypted": [*GOOD, "DECRYPTION_OKAY"],
    "unknown word": [*GOOD, "SOMETHING_NEW 1"],
    "two texts": [*GOOD, "PLAINTEXT 62 0 ", "PLAINTEXT 62 0 "],
    "not read to its end": [*GOOD, "UNEXPECTED 0"],
    "failed": [*GOOD, "FAILURE gpg-exit 33554433"],
    "short VALIDSIG": changed(f" 0 22 8 00 {PRIMARY}", ""),
    "no fingerprint": changed(PRIMARY, "x"),
    "no time": changed("1767225600 0", "1767225600 x"),
    "lower case": [line.lower() for line in GOOD],
}


@pytest.mark.parametrize("case", BAD)
def test_nothing_else_is(case: str) -> None:
    found = parse(*BAD[case])
    assert not found.good
    assert found.found.isprintable()


@pytest.mark.parametrize("prefix", [" ", "gpg: ", "[GNUPG:]", "x[GNUPG:] "])
def test_lines_that_are_not_gpgs(prefix: str) -> None:
    raw = "".join(f"{prefix}{line}\n" for line in GOOD).encode()
    assert not parse_status(raw, ("00",)).good


@given(st.permutations(range(len(GOOD))), st.integers(0, len(GOOD) - 1), st.text(max_size=20))
def test_a_line_too_many_or_too_few(order: list[int], left_out: int, text: str) -> None:
    kept = [GOOD[number] for number in order if number != left_out]
    found = parse(*kept, text.replace("\n", " "))
    assert found.good in (True, False)
    assert found.found.isprintable()
    if GOOD[left_out].startswith(("GOODSIG", "VALIDSIG")) and not text.startswith(("GOODSIG", "VALIDSIG")):
        assert not found.good
