# SPDX-License-Identifier: Apache-2.0
"""``hpcpod image``, the store's side: gc, df, why, verify, pin, unpin, mount and umount."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence

import click

from hpcpod.config import runtime_directory
from hpcpod.errors import HpcpodError, ImageDigestMismatch, StoreUnusable, UsageError
from hpcpod.images.limits import configured
from hpcpod.images.sources.access import Access
from hpcpod.images.sources.checks import parse_checks
from hpcpod.images.sources.platforms import platform_of
from hpcpod.images.sources.registry.blobs import KEEP_SECONDS
from hpcpod.images.stores import collect, mounts, usage
from hpcpod.images.stores.destination import sweep_announced
from hpcpod.images.stores.explain import explain
from hpcpod.images.stores.fetch import Order
from hpcpod.images.stores.names import forget
from hpcpod.images.stores.removal import remove_damaged, remove_entry
from hpcpod.images.stores.site import open_for_root
from hpcpod.images.stores.store import Store, StoredImage, open_site, open_store
from hpcpod.images.stores.upkeep import find_stored, forget_blobs
from hpcpod.images.stores.upkeep import pin as pin_image
from hpcpod.images.stores.upkeep import unpin as unpin_image
from hpcpod.images.stores.verify import Verdict, damaged
from hpcpod.images.stores.verify import verify as verify_entry
from hpcpod.launcher.sweep import sweep as sweep_runtime
from hpcpod.log import StderrProgress, counted, shown, size
from hpcpod.model import Pull
from hpcpod.settings import Settings, read_settings

_SITE = click.option("--site", is_flag=True, help="In the site's store, as root.")
_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")
_NAMES = click.argument("names", metavar="REF|DIGEST...", nargs=-1, required=True)


def own_store() -> Store:
    """The user's own store."""
    return open_store(os.environ, os.getuid())


def stores() -> list[Store]:
    """The site's store, where there is one, and the user's own."""
    site = open_site(read_settings(os.environ))
    return [*([site] if site else []), own_store()]


def chosen_store(site: bool) -> Store:
    """The store that a command changes."""
    return open_for_root(read_settings(os.environ)) if site else own_store()


def table(rows: Sequence[Sequence[str]]) -> None:
    """Print rows in aligned columns."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        click.echo("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())


@click.command()
@click.option("--all", "everything", is_flag=True, help="Remove every image that is not in use or pinned.")
@_SITE
def gc(everything: bool, site: bool) -> None:
    """Remove what killed commands left, and images beyond the quota.

    The images that were not used for longest go first; one that is in use or pinned never goes.
    """
    settings = read_settings(os.environ)
    progress = StderrProgress()
    store = chosen_store(site)
    leftovers = store.tidy()
    if not site:
        runtime = runtime_directory(os.environ, os.getuid())
        leftovers += sweep_runtime(runtime) + sweep_announced(f"{runtime}/unpacking")
    leftovers += forget_blobs(store, 0 if everything else KEEP_SECONDS)
    for name in remove_damaged(store):
        progress.note(f"removed {name}: damaged")
        leftovers += 1
    removed = _remove_unused(store, progress) if everything else collect.enforce(store, settings, progress)
    forget(store, {image.digest for each in {*stores(), store} for image in each.all()})
    freed = size(sum(image.disk for image in removed))
    said = f"removed {counted(len(removed), 'image')}, {freed}" if removed else "no image had to go"
    click.echo(f"{said}; removed {counted(leftovers, 'leftover')}" if leftovers else said)


def _remove_unused(store: Store, progress: StderrProgress) -> list[StoredImage]:
    removed = []
    for candidate in collect.candidates(store):
        if candidate.kept:
            progress.note(f"kept {candidate.image.digest[:SHORT]}: {candidate.kept}")
            continue
        try:
            remove_entry(store, candidate.image)
        except HpcpodError as error:  # came into use meanwhile
            progress.note(f"kept {candidate.image.digest[:SHORT]}: {error.message}")
        else:
            removed.append(candidate.image)
    return removed


SHORT = 19
"""Characters of a digest in tables: sha256: and 12 digits."""


@click.command()
@_JSON
def df(as_json: bool) -> None:
    """Show how full the stores are, and what keeps their images there."""
    settings = read_settings(os.environ)
    found = [(store, collect.limit_of(store, settings), collect.candidates(store)) for store in stores()]
    if as_json:
        click.echo(json.dumps([_df_json(*entry) for entry in found], indent=2))
        return
    for store, limit, images in found:
        status = os.statvfs(store.directory)
        held = sum(candidate.image.disk for candidate in images)
        quota = f"quota {size(limit)} ({held / limit:.0%})" if limit else "no quota"
        free = f"{size(status.f_bavail * status.f_frsize)} free"
        kind = "site" if store.site else "user"
        number = counted(len(images), "image")
        click.echo(f"{kind} store {shown(store.directory)}: {size(held)} in {number}, {quota}, {free}")
        rows = [("  DIGEST", "FORM", "DISK", "LAST USED", "KEPT", "REFERENCE")]
        for candidate in sorted(images, key=lambda c: c.used):
            when = time.strftime("%Y-%m-%d %H:%M", time.localtime(candidate.used))
            image = candidate.image
            row = (image.form, size(image.disk), when, candidate.kept or "-", shown(image.reference))
            rows.append((f"  {image.digest[:SHORT]}", *row))
        if images:
            table(rows)


def _df_json(store: Store, limit: int | None, images: list[collect.Candidate]) -> dict[str, object]:
    status = os.statvfs(store.directory)
    return {
        "store": "site" if store.site else "user",
        "directory": store.directory,
        "disk": sum(candidate.image.disk for candidate in images),
        "quota": limit,
        "free": status.f_bavail * status.f_frsize,
        "images": [
            {**vars(c.image), "last_used": c.used, "kept": c.kept, "pinned": usage.is_pinned(store, c.image)}
            for c in images
        ],
    }


@click.command()
@_JSON
@click.argument("name", metavar="REF|DIGEST")
def why(name: str, as_json: bool) -> None:
    """Say why an image is in a store, or is not, in which form, and what would become of it."""
    settings = read_settings(os.environ)
    facts = explain(stores(), name, settings, configured(settings))
    if as_json:
        click.echo(json.dumps(facts, indent=2))
        return
    for fact in facts:
        for key, value in fact.items():
            click.echo(f"{key:<12}{shown(str(value)) or '-'}")
        click.echo()


@click.command()
@_SITE
@_JSON
@click.option("--all", "everything", is_flag=True, help="Verify every image of the store.")
@click.argument("names", metavar="[REF|DIGEST...]", nargs=-1)
def verify(names: tuple[str, ...], everything: bool, site: bool, as_json: bool) -> None:
    """Compare images of the store with what they were when they were made.

    All of them is read.  The first time, the files of an image that is a directory are only listed, with
    their digests.
    """
    if everything == bool(names):
        raise UsageError("verify: wants either images or --all", hint="hpcpod image list shows what there is")
    settings = read_settings(os.environ)
    store = _readable_store(site, settings)
    limits = configured(settings)
    images = store.all() if everything else (i for name in names for i in find_stored(store, name, limits))
    verdicts = [verify_entry(store, image) for image in dict.fromkeys(images)]
    verdicts += damaged(store) if everything else []
    if as_json:
        click.echo(json.dumps([_verdict_json(verdict) for verdict in verdicts], indent=2))
    elif verdicts:
        rows = [(v.image.digest[:SHORT], v.image.form, _verdict_text(v)) for v in verdicts]
        table([("DIGEST", "FORM", "RESULT"), *rows])
    bad = [verdict.error for verdict in verdicts if verdict.error]
    if len(bad) > 1:
        raise ImageDigestMismatch(
            f"{len(bad)} of {len(verdicts)} images: not what was written", hint=bad[0].hint
        )
    if bad:
        raise bad[0]


def _readable_store(site: bool, settings: Settings) -> Store:
    """The store that a command reads: the site's also for who is not root."""
    if site and os.geteuid() != 0:
        store = open_site(settings)
        if store is None:
            raise StoreUnusable("site store: none that users can rely on", hint="hpcpod doctor says why")
        return store
    return chosen_store(site)


def _verdict_text(verdict: Verdict) -> str:
    return f"failed: {shown(verdict.error.message)}" if verdict.error else f"good, by {verdict.how}"


def _verdict_json(verdict: Verdict) -> dict[str, object]:
    error = verdict.error
    return {
        "digest": verdict.image.digest,
        "form": verdict.image.form,
        "good": error is None,
        "compared_with": verdict.how,
        "seconds": verdict.seconds,
        "error": error and {"name": error.slug, "message": error.message},
    }


@click.command()
@_SITE
@_NAMES
def pin(names: tuple[str, ...], site: bool) -> None:
    """Keep images from ever being collected."""
    _each(names, site, pin_image)


@click.command()
@_SITE
@_NAMES
def unpin(names: tuple[str, ...], site: bool) -> None:
    """Let images be collected again."""
    _each(names, site, unpin_image)


def _each(names: tuple[str, ...], site: bool, change: object) -> None:
    store = chosen_store(site)
    limits = configured(read_settings(os.environ))
    for image in dict.fromkeys(image for name in names for image in find_stored(store, name, limits)):
        assert callable(change)
        change(store, image)
        click.echo(image.digest)


INSECURE = click.option(
    "--insecure-options",
    "insecure",
    metavar="CHECK,...",
    multiple=True,
    callback=lambda _context, _option, texts: parse_checks(texts, "option --insecure-options"),
    help="Switch off checks: signature, tls (a registry's certificate), http (registries without TLS).",
)
_LEASE = click.option(
    "--lease", metavar="NAME", default="manual", help="Who needs it, a job for example (default: manual)."
)


@click.command()
@_LEASE
@click.option("--rootfs", metavar="FORM", default="auto", help="dir, squashfs, erofs, or auto (default).")
@click.option(
    "--pull",
    "when",
    type=click.Choice([pull.value for pull in Pull]),
    default=Pull.MISSING.value,
    help="When to ask a registry what a name means (default: missing).",
)
@INSECURE
@click.argument("reference", metavar="REF")
def mount(reference: str, lease: str, rootfs: str, when: str, insecure: frozenset[str]) -> None:
    """Mount the image REF of the site's store for all users of this node, as root.

    It is pulled if it is not there.  Prints where it is.  It stays mounted until every lease on it has been
    released by umount.
    """
    from hpcpod.images.stores.forms import parse_form

    settings = read_settings(os.environ)
    store = open_for_root(settings)
    order = Order(
        reference,
        platform_of(os.uname().machine),
        configured(settings),
        StderrProgress(),
        store.locks,
        settings,
        parse_form(rootfs, "option --rootfs"),
        Access(os.environ, insecure),
        Pull(when),
    )
    click.echo(mounts.pull_and_mount(store, order, lease))


@click.command()
@_LEASE
@click.option("--all", "everything", is_flag=True, help="Release the lease on every image.")
@click.argument("name", metavar="[REF|DIGEST]", required=False)
def umount(name: str | None, lease: str, everything: bool) -> None:
    """Release a lease on an image; the last one unmounts it.

    Pods that run from it are not disturbed.
    """
    if everything == bool(name):
        raise UsageError("umount: wants either an image or --all", hint="hpcpod image df shows the leases")
    mounts.check_lease(lease)
    settings = read_settings(os.environ)
    store = open_for_root(settings)
    if name is None:
        released = mounts.release(store, lease)
    else:
        found = find_stored(store, name, configured(settings))
        others = sorted({holder for image in found for holder in usage.leases(store, image)})
        if lease not in others:
            named = f"; leased by {', '.join(others)}" if others else ""
            StderrProgress().note(f"no lease {shown(lease)} on {shown(name)}{named}")
        released = [entry for image in found for entry in mounts.release(store, lease, image.name)]
    for entry in released:
        click.echo(entry)
