# SPDX-License-Identifier: Apache-2.0
"""What gpg says of a signature: its status lines (GnuPG, doc/DETAILS, "Format of the --status-fd output").

Pure.  A signature is good when gpg says so of exactly one, and says nothing that is not known here.
"""

from __future__ import annotations

from hpcpod.frozen import frozen
from hpcpod.log import shown

_PREFIX = "[GNUPG:] "
_RESULTS = ("GOODSIG", "EXPSIG", "EXPKEYSIG", "REVKEYSIG", "BADSIG", "ERRSIG")
_KNOWN = frozenset(
    (
        *_RESULTS,
        *("NEWSIG", "KEY_CONSIDERED", "SIG_ID", "VALIDSIG", "NO_PUBKEY", "KEYEXPIRED", "KEYREVOKED"),
        *("TRUST_UNDEFINED", "TRUST_NEVER", "TRUST_MARGINAL", "TRUST_FULLY", "TRUST_ULTIMATE"),
        *("PLAINTEXT", "PLAINTEXT_LENGTH", "VERIFICATION_COMPLIANCE_MODE", "PROGRESS"),
        *("NOTATION_NAME", "NOTATION_FLAGS", "NOTATION_DATA", "POLICY_URL"),
        *("FAILURE", "NODATA", "UNEXPECTED", "ERROR", "WARNING"),
    )
)
_BROKEN = ("NODATA", "UNEXPECTED", "FAILURE", "ERROR")
_HASHES = {"1": "MD5", "2": "SHA-1", "3": "RIPEMD-160", "8": "", "9": "", "10": "", "11": ""}
"""Hash algorithms (RFC 4880, 9.4): those that are refused have a name."""
_ERRORS = {"4": "by an algorithm that gpg does not know", "9": "unknown key"}


@frozen
class Outcome:
    """What became of one signature.

    found: in words.  fingerprint: of the primary key, signer: of the key or subkey that signed; both only
    where the signature is cryptographically right.  until: seconds since 1970 when the signature expires, 0
    for never.
    """

    good: bool
    found: str
    fingerprint: str = ""
    signer: str = ""
    until: int = 0


def day(seconds: int) -> str:
    """The date, for people."""
    from datetime import UTC, datetime

    try:
        return str(datetime.fromtimestamp(seconds, UTC).date())
    except (OverflowError, ValueError, OSError):
        return "a date beyond all calendars"


def parse_status(raw: bytes, classes: tuple[str, ...]) -> Outcome:
    """The outcome for a message with one signature, of one of these classes (RFC 4880, section 5.2.1)."""
    rows = [
        line.removeprefix(_PREFIX).split(" ")
        for line in raw.decode("utf-8", "replace").split("\n")
        if line.startswith(_PREFIX)
    ]
    results = [row for row in rows if row[0] in _RESULTS]
    valid = [row for row in rows if row[0] == "VALIDSIG"]
    strange = [row[0] for row in rows if row[0] not in _KNOWN]
    wrong = ""
    if strange:
        wrong = f"not a plain signature: gpg says {shown(strange[0])}"
    elif not results:
        wrong = "not a signature that gpg can read"
    elif len(results) > 1 or len(valid) > 1:
        wrong = "more than one signature in one message"
    elif sum(row[0] == "PLAINTEXT" for row in rows) > 1:
        wrong = "more than one text in one message"
    if wrong:
        return Outcome(False, wrong)
    return _result(results[0], valid, rows, classes)


def _result(
    result: list[str], valid: list[list[str]], rows: list[list[str]], classes: tuple[str, ...]
) -> Outcome:
    kind, who = result[0], shown(result[1]) if len(result) > 1 else "?"
    if kind == "BADSIG":
        return Outcome(False, f"bad: what was signed is something else (key {who})")
    if kind == "ERRSIG":
        return Outcome(False, _error(result, who))
    if len(valid) != 1 or len(valid[0]) < 11:
        return Outcome(False, "not checked to the end by gpg")
    return _valid(kind, valid[0], rows, classes)


def _error(row: list[str], who: str) -> str:
    """ERRSIG KEYID PUBLIC_KEY_ALGORITHM HASH_ALGORITHM CLASS TIME REASON [FINGERPRINT]."""
    weak = _HASHES.get(row[3], "") if len(row) > 3 else ""
    reason = row[6] if len(row) > 6 else ""
    if reason == "9" and len(row) > 7 and len(row[7]) >= 40:
        who = shown(row[7])
    if weak and reason != "9":
        return f"over a {weak} digest, which is refused (key {who})"
    return f"{_ERRORS.get(reason, 'cannot be checked')} {who}"


def _valid(kind: str, valid: list[str], rows: list[list[str]], classes: tuple[str, ...]) -> Outcome:
    """VALIDSIG FINGERPRINT DATE TIME EXPIRES VERSION - KEY_ALGORITHM HASH_ALGORITHM CLASS PRIMARY."""
    signer, expires, algorithm, signature_class, primary = valid[1], valid[4], valid[8], valid[9], valid[10]
    until = int(expires) if expires.isascii() and expires.isdigit() else -1

    if until < 0 or not (_is_fingerprint(signer) and _is_fingerprint(primary)):
        return Outcome(False, "not checked to the end by gpg")
    wrong = ""
    if kind == "EXPSIG":
        wrong = f"expired on {day(until)}"
    elif kind == "EXPKEYSIG":
        ended = [int(row[1]) for row in rows if row[0] == "KEYEXPIRED" and row[1:2] and row[1].isdigit()]
        wrong = f"by a key that expired{f' on {day(max(ended))}' if ended else ''}"
    elif kind == "REVKEYSIG":
        wrong = "by a key that its owner revoked"
    elif _HASHES.get(algorithm, "an unknown") != "":
        wrong = f"over a {_HASHES.get(algorithm, 'unknown')} digest, which is refused"
    elif signature_class not in classes:
        wrong = f"of class {shown(signature_class)}, which is for something else"
    elif any(row[0] in _BROKEN for row in rows):
        wrong = "followed by something that gpg cannot read"
    if wrong:
        return Outcome(False, wrong, primary, signer)
    return Outcome(True, "good", primary, signer, until)


def _is_fingerprint(text: str) -> bool:
    return len(text) in (40, 64) and frozenset("0123456789ABCDEF").issuperset(text)
