# SPDX-License-Identifier: Apache-2.0
"""Whether an image may run, asked at each preparation: the trust room judges, this room brings it its facts.

Judging may start other programs and read signatures of a registry.  What was accepted is therefore kept in
the run-time directory, under a hash of the policies and keys and of what was judged: a start that meets
neither a new policy nor a new image reads the policies and this one file.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress

from hpcpod.frozen import frozen
from hpcpod.images.sources.checks import SIGNATURE
from hpcpod.images.trust.facts import Signature, Subject
from hpcpod.images.trust.gates import Gates, gates
from hpcpod.log import Progress
from hpcpod.settings import Settings

_LONGEST = 32
Collect = Callable[[], tuple[Signature, ...]]


@frozen
class Terms:
    """By what images are admitted.

    site: into the site's store, or out of it.  waived: signatures are not asked for.  receipts: directory of
    verdicts that accepted; empty for none.
    """

    gates: Gates
    site: bool = False
    waived: bool = False
    receipts: str = ""


def users_terms(
    settings: Settings, environment: Mapping[str, str], uid: int, insecure: frozenset[str], receipts: str = ""
) -> Terms:
    """For what a user starts or unpacks: who waives signatures waives their own gate, not the site's.

    Raises TrustUnusable.
    """
    found = gates(settings, environment, uid)
    return Terms(found.without_user() if SIGNATURE in insecure else found, receipts=receipts)


@frozen
class Admission:
    """An image may run.  until: seconds since 1970, 0 for ever.  signatures: None where none were wanted."""

    until: int = 0
    signatures: tuple[Signature, ...] | None = None


def admit(
    terms: Terms, subject: Subject, collect: Collect, known: tuple[Signature, ...] | None = None
) -> Admission:
    """Let an image pass, or raise ImageUntrusted; TrustUnusable, and what collect() raises.

    known: signatures that were found before.  collect: looks for them; called only where the policy is not
    met without, and not by the known ones.
    """
    if terms.waived or (terms.gates.is_open and not terms.site):
        return Admission(signatures=known)
    receipt = _receipt(terms, subject)
    until = _read(receipt)
    if until is not None:
        return Admission(until, known)
    from hpcpod.images.trust.judge import judge, refuse

    now = int(time.time())
    verdict = judge(terms.gates, subject, known or (), now, site=terms.site)
    if not verdict.accepted:
        found = collect()
        if known is None or found != known:
            known = found
            verdict = judge(terms.gates, subject, known, now, site=terms.site)
    if not verdict.accepted:
        raise refuse(verdict, subject)
    if verdict.checks:  # what a policy accepts without looking at a signature costs nothing
        _write(receipt, verdict.until)
    return Admission(verdict.until, known)


def _receipt(terms: Terms, subject: Subject) -> str:
    if not terms.receipts:
        return ""
    import hashlib  # not where no policy is

    judged = f"{terms.gates.fingerprint}\0{terms.site}\0{subject!r}".encode("utf-8", "surrogateescape")
    return f"{terms.receipts}/{hashlib.sha256(judged).hexdigest()}"


def _read(receipt: str) -> int | None:
    """Until when the image was accepted, 0 for no end; None where it was not, or the time is over."""
    try:
        with open(receipt, encoding="ascii") as file:
            until = int(file.read(_LONGEST))
    except (OSError, ValueError):
        return None
    return until if until == 0 or until > time.time() else None


def _write(receipt: str, until: int) -> None:
    """Best effort: without it the next start judges again."""
    if not receipt:
        return
    temporary = f"{receipt}.{os.getpid()}"
    with suppress(OSError):
        os.makedirs(os.path.dirname(receipt), 0o700, exist_ok=True)
        with open(temporary, "w", encoding="ascii") as file:
            file.write(str(until))
        os.rename(temporary, receipt)


def tell_once(store_directory: str, progress: Progress) -> None:
    """Say, once for each store, that its images are accepted on their digest alone."""
    mark = f"{store_directory}/unsigned"
    with suppress(OSError):  # said before; or a store that cannot be written to, which says so itself
        os.close(os.open(mark, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
        progress.note(
            "no policy says who must have signed images: they are accepted on their digest alone "
            "(hpcpod trust --help; this is said once)"
        )
