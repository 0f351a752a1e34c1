# SPDX-License-Identifier: Apache-2.0
"""``hpcpod trust``: whose signatures make an image one that may run, and why it may or may not."""

from __future__ import annotations

import json
import os
import sys
import time

import click

from hpcpod.cli.suggest import Suggesting
from hpcpod.errors import UsageError
from hpcpod.images.limits import configured
from hpcpod.images.sources.access import Access
from hpcpod.images.sources.checks import parse_checks
from hpcpod.images.sources.platforms import parse_platform, platform_of
from hpcpod.images.sources.reference import parse_reference
from hpcpod.images.sources.source import open_source
from hpcpod.images.trust import directory as trust_directory
from hpcpod.images.trust.directory import Candidate
from hpcpod.images.trust.facts import Check, Signature, Subject, Verdict
from hpcpod.images.trust.gates import SITE_DIRECTORY, user_directory
from hpcpod.images.trust.gates import gates as read_gates
from hpcpod.images.trust.judge import Decision, combined, decisions, name_of, words
from hpcpod.images.trust.keys import DATA_MAX, parse_fingerprint
from hpcpod.images.trust.rules import TRANSPORTS, Rule, check_prefix
from hpcpod.log import shown
from hpcpod.settings import read_settings

_TRANSPORT = click.option(
    "--transport",
    type=click.Choice(TRANSPORTS),
    default="docker",
    show_default=True,
    help="Of the images that the rule is for.",
)
_PREFIX = click.option(
    "--prefix", required=True, metavar="PREFIX", help="A host, a part of a name, or a path; all below it."
)
_YES = click.option("--yes", is_flag=True, help="Do not ask: the fingerprints were compared.")
_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")


@click.group(cls=Suggesting)
def trust() -> None:
    """Say whose signatures make images trusted; explain what is accepted and why.

    As root these commands change the site's trust directory, else the user's own.
    """


def _own_directory() -> str:
    """The trust directory that this user changes."""
    if os.geteuid() == 0:
        return read_settings(os.environ).trust_directory or SITE_DIRECTORY
    found = user_directory(os.environ)
    if not found:
        raise UsageError("HOME: not set, so there is no place for rules of your own")
    return found


def _plain_prefix(transport: str, prefix: str) -> str:
    """The prefix as images' scopes are written: paths without symbolic links."""
    plain = prefix.rstrip("/") if len(prefix) > 1 else prefix
    if transport != "docker" and plain.startswith("/"):
        plain = os.path.realpath(plain)
    check_prefix(transport, plain)
    return plain


@trust.command()
@click.argument("keys", metavar="KEY...", nargs=-1, required=True)
@_PREFIX
@_TRANSPORT
@click.option(
    "--threshold", type=click.IntRange(1), metavar="K", help="So many of the keys must have signed."
)
@click.option("--named", is_flag=True, help="Only signatures that name the image's repository count.")
@_YES
def add(  # noqa: PLR0913, PLR0917 - click hands over every option
    keys: tuple[str, ...], prefix: str, transport: str, threshold: int | None, named: bool, yes: bool
) -> None:
    """Trust keys for the images below a prefix.

    KEY is a file with OpenPGP public keys, a PEM public key as cosign makes them, or - for standard input.
    Keys are added to those that the rule has.
    """
    plain = _plain_prefix(transport, prefix)
    found = [candidate for name in keys for candidate in _loaded(name)]
    for candidate in found:
        click.echo(f"{candidate.key.fingerprint}  {candidate.name}", err=True)
    _confirm(found, f"{transport} {shown(plain)}", yes)
    rule = Rule(transport, plain, (), threshold or 0, named)
    made = trust_directory.add(_own_directory(), rule, tuple(each.key for each in found))
    click.echo(f"{transport} {shown(plain)}: {made.threshold} of {len(made.keys)} keys", err=True)


def _loaded(name: str) -> tuple[Candidate, ...]:
    try:
        if name == "-":
            raw = sys.stdin.buffer.read(DATA_MAX + 1)
        else:
            with open(name, "rb") as file:
                raw = file.read(DATA_MAX + 1)
    except OSError as error:
        raise UsageError(f"key {shown(name)}: {os.strerror(error.errno or 0).lower()}") from None
    if len(raw) > DATA_MAX:
        raise UsageError(f"key {shown(name)}: longer than {DATA_MAX} bytes")
    return trust_directory.load(raw, shown(name), int(time.time()))


def _confirm(found: list[Candidate], what: str, yes: bool) -> None:
    """Ask whether these are the keys; where nobody can answer, --yes must be there."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise UsageError(
            "trust: nobody to ask whether these are the right keys",
            hint="compare the fingerprints with what the owner published, then give --yes",
        )
    count = "this key" if len(found) == 1 else f"these {len(found)} keys"
    if not click.confirm(f"Trust {count} for {what}?", err=True):
        raise click.Abort


@trust.command()
@_PREFIX
@_TRANSPORT
def rm(prefix: str, transport: str) -> None:
    """Remove the rule for a prefix."""
    trust_directory.remove(_own_directory(), transport, _plain_prefix(transport, prefix))


@trust.command()
@click.argument("fingerprint", metavar="FINGERPRINT")
def revoke(fingerprint: str) -> None:
    """Let no rule accept a key any more, whatever it says.

    FINGERPRINT is the whole one: 40 hexadecimal digits, or sha256: and 64 for a PEM key.
    """
    plain = parse_fingerprint(fingerprint)
    if plain is None:
        raise UsageError(
            f"fingerprint {shown(fingerprint)}: expected 40 hexadecimal digits, or sha256: and 64",
            hint="hpcpod trust list shows those of the keys that are trusted",
        )
    path = _own_directory()
    done = trust_directory.revoke(path, plain)
    click.echo(f"{plain}: {'revoked' if done else 'was revoked'} in {shown(path)}", err=True)


@trust.command("list")
@_JSON
def list_rules(as_json: bool) -> None:
    """Show the rules of the site's trust directory and of the user's, and which keys are revoked."""
    settings, uid = read_settings(os.environ), os.getuid()
    either = frozenset((0, uid))
    site = settings.trust_directory or SITE_DIRECTORY
    places = [("site", site, either if settings.trust_directory else frozenset((0,)))]
    own = user_directory(os.environ)
    places += [("user", own, either)] if own else []
    rows, revoked = [], []
    for gate, path, owners in places:
        found = trust_directory.content(path, owners, strict=gate == "site")
        revoked += [{"gate": gate, "fingerprint": fingerprint} for fingerprint in found.revoked]
        for rule, _ in found.rules:
            rows.append({"gate": gate, **vars(rule), "keys": list(rule.keys)})
    if as_json:
        click.echo(json.dumps({"rules": rows, "revoked": revoked}, indent=1))
        return
    for row in rows:
        named = ", named" if row["named"] else ""
        line = f"{row['gate']}  {row['transport']} {shown(str(row['prefix']))}"
        click.echo(f"{line}  {row['threshold']} of {len(row['keys'])}{named}")
        for key in row["keys"]:
            click.echo(f"      {key}")
    for entry in revoked:
        click.echo(f"{entry['gate']}  revoked {entry['fingerprint']}")
    if not rows and not revoked:
        click.echo("no rules", err=True)


@trust.command()
@click.argument("reference", metavar="REF")
@click.option(
    "--site", is_flag=True, help="Whether it may go into the site's store, not whether you may run it."
)
@click.option("--platform", metavar="OS/ARCH[/VARIANT]", help="Of the image, if it is not this machine's.")
@click.option(
    "--insecure-options",
    "insecure",
    metavar="CHECK,...",
    multiple=True,
    help="Switch off checks of registries: tls (certificates), http (registries without TLS).",
)
@_JSON
def explain(
    reference: str, site: bool, platform: str | None, insecure: tuple[str, ...], as_json: bool
) -> int:
    """Show which rules are for an image, which keys were tried, what was found, and the verdict.

    Ends with 0 if the image is accepted, and with 1 if not.
    """
    settings = read_settings(os.environ)
    gates = read_gates(settings, os.environ, os.getuid())
    wanted = parse_platform(platform) if platform else platform_of(os.uname().machine)
    access = Access(os.environ, parse_checks(insecure, "option --insecure-options"))
    with open_source(parse_reference(reference), configured(settings), access) as source:
        subject = source.subject(wanted)
        signatures = source.signatures(wanted)
    found = decisions(gates, subject, signatures, int(time.time()), site=site)
    verdict = combined(gates, found, site=site)
    if as_json:
        click.echo(json.dumps(_document(subject, found, verdict, signatures), indent=1))
    else:
        _print(subject, found, verdict, signatures)
    return 0 if verdict.accepted else 1


def _document(
    subject: Subject, found: tuple[Decision, ...], verdict: Verdict, signatures: tuple[Signature, ...]
) -> dict[str, object]:
    return {
        "image": name_of(subject),
        "transport": subject.transport,
        "digest": subject.digest,
        "scopes": list(subject.scopes),
        "signatures": [{"kind": each.kind.value, "origin": each.origin} for each in signatures],
        "gates": [
            {
                "gate": each.gate,
                "accepted": each.accepted,
                "rule": each.rule,
                "expected": each.expected,
                "candidates": [
                    {"file": place.file, "scope": place.scope, "asks": [words(one) for one in place.demands]}
                    for place in each.candidates
                ],
                "checks": [vars(check) for check in each.checks],
                "until": each.until,
            }
            for each in found
        ],
        "accepted": verdict.accepted,
        "rule": verdict.rule,
        "expected": verdict.expected,
        "until": verdict.until,
    }


def _print(
    subject: Subject, found: tuple[Decision, ...], verdict: Verdict, signatures: tuple[Signature, ...]
) -> None:
    click.echo(f"image       {name_of(subject)}")
    click.echo(f"digest      {subject.digest}")
    click.echo(f"signatures  {len(signatures) or 'none'}")
    for signature in signatures:
        click.echo(f"  {signature.kind.value}: {shown(signature.origin)}")
    for each in found:
        said = {True: "accepts", False: "rejects", None: "has no rule for it"}[each.accepted]
        click.echo(f"{each.gate:<10}  {said}")
        for number, place in enumerate(each.candidates):
            click.echo(f"  {'decides' if number == 0 else 'passed over'}: {place.scope} of {place.file}")
            for demand in place.demands:
                click.echo(f"    asks for {words(demand)}")
        for check in each.checks:
            _print_check(check)
    click.echo(f"verdict     {'accepted' if verdict.accepted else 'rejected'}")
    if not verdict.rule:
        click.echo(f"  asked for {verdict.expected}")


def _print_check(check: Check) -> None:
    click.echo(f"  {'good' if check.good else 'not accepted'}: {shown(check.origin) or 'the image'}")
    click.echo(f"    for {check.requirement}")
    if check.key:
        click.echo(f"    key {check.key}")
    if not check.good:
        click.echo(f"    {check.found}")
