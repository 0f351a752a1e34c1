# SPDX-License-Identifier: Apache-2.0
"""Whether an image passes the gates: which rule decides, what it asks for, what was found."""

from __future__ import annotations

from hpcpod.errors import ImageUntrusted
from hpcpod.frozen import frozen
from hpcpod.images.trust.facts import Check, Signature, Subject, Verdict
from hpcpod.images.trust.gates import Demand, Gate, Gates, Place
from hpcpod.images.trust.policy import ACCEPT, REJECT, SIGNED_BY
from hpcpod.log import shown

SHOWN_KEYS = 4
"""Keys that a sentence names."""
SHOWN_CHECKS = 4
"""Signatures that an error speaks of."""


@frozen
class _Case:
    """The image, its signatures, the time (seconds since 1970), and keys that count no more."""

    subject: Subject
    signatures: tuple[Signature, ...]
    now: int
    revoked: frozenset[str]


@frozen
class Decision:
    """What one gate says.

    accepted: None where no rule of it is for the image.  candidates: every place that could have decided, in
    the order of precedence; the first did.  The rest as in a Verdict.
    """

    gate: str
    accepted: bool | None
    rule: str = ""
    expected: str = ""
    checks: tuple[Check, ...] = ()
    until: int = 0
    candidates: tuple[Place, ...] = ()


def judge(
    gates: Gates, subject: Subject, signatures: tuple[Signature, ...], now: int, *, site: bool
) -> Verdict:
    """Whether the image may run, or for site whether it may go into the store that root fills.

    now: seconds since 1970.  Raises TrustUnusable.
    """
    return combined(gates, decisions(gates, subject, signatures, now, site=site), site=site)


def decisions(
    gates: Gates, subject: Subject, signatures: tuple[Signature, ...], now: int, *, site: bool
) -> tuple[Decision, ...]:
    """What each gate says, the site's first.  Raises TrustUnusable."""
    # A default that nobody decided is none for the site's store, nor where the site wants users to have one.
    strict = site or gates.user_unsigned == "reject"
    case = _Case(subject, signatures, now, gates.revoked)
    return _decide(gates.site, case, strict=strict), _decide(gates.user, case, strict=False)


def combined(gates: Gates, found: tuple[Decision, ...], *, site: bool) -> Verdict:
    """The verdict: one gate that rejects is enough; the user's opens nothing that the site's store needs."""
    checks = tuple(check for decision in found for check in decision.checks)
    for decision in found:
        if decision.accepted is False:
            return Verdict(False, decision.rule, decision.expected, decision.checks)
    deciding = [each for each in found if each.accepted and (not site or each.gate == "site")]
    if deciding:
        untils = [decision.until for decision in found if decision.until]
        rules = " and ".join(decision.rule for decision in found if decision.accepted)
        expected = " and ".join(decision.expected for decision in found if decision.accepted)
        return Verdict(True, rules, expected, checks, min(untils, default=0))
    if site:
        return Verdict(False, "", "a rule of the site that accepts it: its store takes no others", checks)
    if gates.user_unsigned == "reject":
        return Verdict(
            False, "", "a rule that accepts it: [trust] user_unsigned of hpcpod.toml is reject", checks
        )
    return Verdict(True, "", "nothing: no rule is for it", checks)


def candidates(gate: Gate, subject: Subject, *, strict: bool) -> tuple[Place, ...]:
    """The places of a gate that are for an image, the one that decides first.

    The longest prefix decides; at equal length the policy does.  strict: a distribution's default is none.
    """
    found = [
        place
        for scope in (*(scope for scope in subject.scopes if scope), "")
        for place in gate.scopes.get((subject.transport, scope), ())
    ]
    if gate.default is not None and not (strict and gate.undecided):
        found.append(gate.default)
    return tuple(found)


def _decide(gate: Gate, case: _Case, *, strict: bool) -> Decision:
    places = candidates(gate, case.subject, strict=strict)
    if not places:
        return Decision(gate.name, None)
    place = places[0]
    met, checks, untils = True, [], []
    for demand in place.demands:
        # All of them, though one that fails would do: whoever mends a rule wants to see what is left.
        good, found, until = _met(demand, case)
        met = met and good
        checks += found
        untils.append(until)
    return Decision(
        gate=gate.name,
        accepted=met,
        rule=f"{place.scope} of {place.file}",
        expected=" and ".join(words(demand) for demand in place.demands),
        checks=tuple(checks),
        until=min((until for until in untils if until), default=0) if met else 0,
        candidates=places,
    )


def _met(demand: Demand, case: _Case) -> tuple[bool, list[Check], int]:
    """Whether the image has what is demanded, the checks that were made, and until when that is so."""
    from hpcpod.images.trust.check import SIGNATURES_MAX, Checker

    if demand.kind == ACCEPT:
        return True, [], 0
    asked = words(demand)
    if demand.kind == REJECT:
        return False, [], 0
    if demand.unsupported:
        return False, [Check(asked, "", "", False, demand.unsupported)], 0
    checks: list[Check] = []
    good: dict[str, int] = {}
    with Checker(demand, case.subject, case.now, case.revoked, asked) as checker:
        fitting = [signature for signature in case.signatures if checker.counts(signature)]
        for signature in fitting[:SIGNATURES_MAX]:
            for result in checker.results(signature):
                checks.append(result.check)
                if result.check.good:
                    good[result.key] = _later(good.get(result.key, -1), result.until)
    if not fitting:
        others = f", {len(case.signatures)} of other kinds" if case.signatures else ""
        checks.append(
            Check(asked, "", _named(demand), False, f"no signature that such a key can make{others}")
        )
    if len(fitting) > SIGNATURES_MAX:
        checks.append(
            Check(asked, "", "", False, f"{len(fitting)} signatures; {SIGNATURES_MAX} are looked at")
        )
    return len(good) >= demand.threshold, checks, _until(good, demand.threshold)


def _later(one: int, other: int) -> int:
    """The later of two ends, 0 being none at all; -1 for one that is not known yet."""
    return other if one < 0 else 0 if 0 in (one, other) else max(one, other)


def _until(good: dict[str, int], threshold: int) -> int:
    """When fewer keys than are needed will be left; 0 for never."""
    ends = sorted(good.values(), key=lambda end: (end != 0, -end))
    return ends[threshold - 1] if len(ends) >= threshold else 0


def words(demand: Demand) -> str:
    """What a demand asks for."""
    if demand.kind == ACCEPT:
        return "nothing"
    if demand.kind == REJECT:
        return "that it is not used"
    what = "an OpenPGP signature" if demand.kind == SIGNED_BY else "a signature"
    what = "a cosign signature" if demand.kind == "sigstoreSigned" else what
    if demand.threshold > 1:
        what = f"signatures by {demand.threshold} of the keys"
    else:
        what += " by key" if len(demand.keys) == 1 else " by one of the keys"
    named = f" {_named(demand)}" if demand.keys else ""
    return f"{what}{named} for {demand.identity}"


def _named(demand: Demand) -> str:
    names = [key.fingerprint for key in demand.keys]
    more = f" and {len(names) - SHOWN_KEYS} more" if len(names) > SHOWN_KEYS else ""
    return ", ".join(names[:SHOWN_KEYS]) + more


def name_of(subject: Subject) -> str:
    """The image, for messages."""
    place = subject.identity or subject.file or (subject.scopes[0] if subject.scopes else "")
    return f"{subject.transport}:{shown(place)}" if not subject.identity else shown(place)


def refuse(verdict: Verdict, subject: Subject) -> ImageUntrusted:
    """The error for a verdict that does not accept: which rule, what it asks for, what was found."""
    rule = f"rule {verdict.rule}" if verdict.rule else "no rule is for it; it"
    found = [
        f"{check.found}{f' ({check.origin})' if check.origin else ''}"
        for check in verdict.checks
        if not check.good
    ]
    good = sum(check.good for check in verdict.checks)
    if good:
        found.insert(0, f"{good} good {'signature' if good == 1 else 'signatures'}")
    more = len(found) - SHOWN_CHECKS
    tail = f"; and {more} more" if more > 0 else ""
    said = f": found {'; '.join(found[:SHOWN_CHECKS])}{tail}" if found else ""
    return ImageUntrusted(
        f"image {name_of(subject)} ({subject.digest}): {rule} asks for {verdict.expected}{said}",
        hint=_hint(verdict),
    )


def _hint(verdict: Verdict) -> str:
    if not verdict.rule:
        return (
            "hpcpod trust add --prefix PREFIX KEY trusts a key for it; hpcpod trust explain shows all rules"
        )
    if any("for no name" in check.found for check in verdict.checks):
        return (
            "cosign sign --new-bundle-format=false names the image; rules of hpcpod trust add take a bundle"
        )
    return "hpcpod trust explain REF shows every rule, key and signature"
