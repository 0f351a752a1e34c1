# SPDX-License-Identifier: Apache-2.0
"""``hpcpod image``: unpack, pull, list, inspect and remove images."""

from __future__ import annotations

import json
import os
import time

import click

from hpcpod.cli.image_store import (
    INSECURE,
    chosen_store,
    df,
    gc,
    mount,
    own_store,
    pin,
    stores,
    table,
    umount,
    unpin,
    verify,
    why,
)
from hpcpod.cli.suggest import Suggesting
from hpcpod.config import runtime_directory
from hpcpod.errors import ImageNotFound, StoreUnusable
from hpcpod.frozen import replace
from hpcpod.images.limits import Limits, configured
from hpcpod.images.sources.access import Access
from hpcpod.images.sources.platforms import parse_platform, platform_of
from hpcpod.images.sources.reference import Reference, parse_reference
from hpcpod.images.sources.source import Described, open_source
from hpcpod.images.stores import removal, upkeep
from hpcpod.images.stores.admission import users_terms
from hpcpod.images.stores.destination import announced, unpack_to
from hpcpod.images.stores.ensure import ensure
from hpcpod.images.stores.fetch import Order
from hpcpod.images.stores.forms import parse_form
from hpcpod.images.stores.site import open_for_root
from hpcpod.images.stores.store import Store, StoredImage, open_site
from hpcpod.images.stores.supply import pull as pull_into_site
from hpcpod.log import Progress, StderrProgress, shown, size
from hpcpod.model import Form, Platform, Pull
from hpcpod.settings import read_settings
from hpcpod.sizes import parse_size

SHORT = 19
"""Characters of a digest in tables: sha256: and 12 digits."""

_PLATFORM = click.option(
    "--platform", metavar="OS/ARCH[/VARIANT]", help="Take this platform from the image, not this machine's."
)
_PULL = click.option(
    "--pull",
    "when",
    type=click.Choice([pull.value for pull in Pull]),
    default=Pull.ALWAYS.value,
    help="When to ask a registry what a name means (default: always).",
)
_SITE = click.option("--site", is_flag=True, help="In the site's store, as root.")
_MAX_BYTES = click.option(
    "--max-bytes", metavar="N", help="Refuse an image that unpacks to more bytes (2G, 512M; default 512G)."
)


@click.group(cls=Suggesting)
def image() -> None:
    """Unpack, verify and keep images."""


def _limits(max_bytes: str | None = None) -> Limits:
    limits = configured(read_settings(os.environ))
    if max_bytes is None:
        return limits
    return replace(limits, bytes_out=parse_size(max_bytes, "option --max-bytes"))


def _platform(text: str | None) -> Platform:
    return parse_platform(text) if text else platform_of(os.uname().machine)


def _access(reference: Reference, checks: frozenset[str]) -> Access:
    """For a command that does not put the image into a store."""
    blobs = f"{own_store().tmp}/blobs" if reference.transport == "docker" else ""
    return Access(os.environ, checks, blobs, StderrProgress())


def _note_skipped(progress: Progress, count: int) -> None:
    if count:
        things = "device or FIFO" if count == 1 else "devices and FIFOs"
        progress.note(f"left out {count} {things} of the image: a pod has the node's devices")


def _announcements() -> str:
    """Where unpackings are announced; empty where this user cannot have a run-time directory."""
    try:
        return f"{runtime_directory(os.environ, os.getuid())}/unpacking"
    except StoreUnusable:
        return ""


@image.command()
@_MAX_BYTES
@_PLATFORM
@INSECURE
@click.argument("reference", metavar="REF")
@click.argument("destination", metavar="DEST")
def unpack(
    reference: str, destination: str, max_bytes: str | None, platform: str | None, insecure: frozenset[str]
) -> None:
    """Unpack the image REF to the new directory DEST.

    Every byte is verified before DEST appears; on an error nothing is left behind.
    """
    progress = StderrProgress()
    limits = _limits(max_bytes)
    terms = users_terms(read_settings(os.environ), os.environ, os.getuid(), insecure)
    parsed = parse_reference(reference)
    with announced(_announcements(), destination):
        _, unpacked = unpack_to(
            parsed,
            destination,
            _platform(platform),
            limits,
            progress,
            access=_access(parsed, insecure),
            terms=terms,
        )
    _note_skipped(progress, unpacked.skipped)


@image.command()
@_MAX_BYTES
@_PLATFORM
@click.option("--rootfs", metavar="FORM", default="auto", help="dir, squashfs, erofs, or auto (default).")
@_PULL
@INSECURE
@_SITE
@click.argument("reference", metavar="REF")
def pull(  # noqa: PLR0913 - an option each
    reference: str,
    *,
    max_bytes: str | None,
    platform: str | None,
    rootfs: str,
    when: str,
    insecure: frozenset[str],
    site: bool,
) -> None:
    """Verify and unpack the image REF into the store.

    Prints the digest of its manifest.
    """
    progress = StderrProgress()
    settings = read_settings(os.environ)
    form = parse_form(rootfs, "option --rootfs")
    limits = _limits(max_bytes)
    order = Order(
        reference,
        _platform(platform),
        limits,
        progress,
        "",
        settings,
        form,
        Access(os.environ, insecure, progress=progress),
        Pull(when),
    )
    click.echo(_pull_into_site(order) if site else _pull(order))


def _pull_into_site(order: Order) -> str:
    """Bring the image into the site's store, as root; its digest."""
    stored, made = pull_into_site(open_for_root(order.settings), order)
    _note_skipped(order.progress, stored.skipped if made else 0)
    return stored.digest


def _pull(order: Order) -> str:
    """Bring the image into the user's own store; its digest."""
    found = ensure(
        order.reference,
        environment=order.access.environment,
        uid=os.getuid(),
        platform=order.platform,
        limits=order.limits,
        progress=order.progress,
        settings=order.settings,
        form=order.form,
        pull=order.pull,
        insecure=order.access.insecure,
    )
    if any(phase.name == "unpack" for phase in found.phases):
        _note_skipped(order.progress, _skipped(found.image.digest))
    return found.image.digest


def _skipped(digest: str) -> int:
    store = own_store()
    images = [image for form in Form if (image := store.stored(digest, form))]
    return images[0].skipped if images else 0


def _as_json(store: Store, meta: StoredImage) -> dict[str, object]:
    return {
        **vars(meta),
        "store": "site" if store.site else "user",
        "rootfs": store.content(meta.digest, Form(meta.form)),
    }


@image.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")
def list_images(as_json: bool) -> None:
    """Show the images in your store and the site's, newest first."""
    found = [(store, meta) for store in stores() for meta in store.all()]
    if as_json:
        click.echo(json.dumps([_as_json(store, meta) for store, meta in found], indent=2))
        return
    if not found:
        StderrProgress().note(f"no images in {shown(own_store().directory)}")
        return
    rows = [("DIGEST", "STORE", "FORM", "PLATFORM", "SIZE", "UNPACKED", "REFERENCE")]
    for store, meta in found:
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(meta.when))
        where = "site" if store.site else "user"
        numbers = (shown(meta.platform), size(meta.size), when, shown(meta.reference))
        rows.append((meta.digest[:SHORT], where, meta.form, *numbers))
    table(rows)


@image.command()
@_SITE
@click.argument("names", metavar="REF|DIGEST...", nargs=-1, required=True)
def rm(names: tuple[str, ...], site: bool) -> None:
    """Remove images from the store.

    They are named by reference, by digest, or by the digest's first 8 digits or more.  An
    image that a pod of yours runs from is kept, with an error.
    """
    store = chosen_store(site)
    images = [image for name in names for image in _removable(store, name)]
    for image in dict.fromkeys(images):
        removal.remove_entry(store, image)
    for digest in dict.fromkeys(image.digest for image in images):
        click.echo(digest)


def _removable(store: Store, name: str) -> tuple[StoredImage, ...]:
    """The images of a store that a name means.  Raises ImageNotFound, which says if another store has it."""
    try:
        return upkeep.find_stored(store, name, _limits())
    except ImageNotFound as error:
        site = None if store.site else open_site(read_settings(os.environ))
        if site is None or not _has(site, name):
            raise
        hint = f"the site's store {site.directory} has it; root removes it: hpcpod image rm --site"
        raise ImageNotFound(error.message, hint=hint) from None


def _has(store: Store, name: str) -> bool:
    try:
        return bool(upkeep.find_stored(store, name, _limits()))
    except ImageNotFound:
        return False


@image.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")
@_PLATFORM
@INSECURE
@click.argument("reference", metavar="REF")
def inspect(reference: str, as_json: bool, platform: str | None, insecure: frozenset[str]) -> None:
    """Show what the image REF is, without unpacking it."""
    parsed = parse_reference(reference)
    with open_source(parsed, _limits(), _access(parsed, insecure)) as source:
        described = source.describe(_platform(platform))
    facts = _facts(reference, described)
    if as_json:
        click.echo(json.dumps(facts, indent=2))
        return
    facts["layers"] = [f"{part.digest} {part.compression} {size(part.size)}" for part in described.parts]
    for name, value in facts.items():
        lines = value if isinstance(value, list) else [value]
        for number, line in enumerate(lines or [""]):
            click.echo(f"{name if not number else '':<12}{shown(str(line)) or '-'}")


def _facts(reference: str, described: Described) -> dict[str, object]:
    config = described.config.config
    kept = [
        store.content(described.digest, form)
        for store in stores()
        for form in Form
        if store.stored(described.digest, form)
    ]
    return {
        "reference": reference,
        "digest": described.digest,
        "platform": str(described.config.platform),
        "stored": kept[0] if kept else "",
        "layers": [f"{part.digest} {part.compression} {part.size}" for part in described.parts],
        "entrypoint": list(config.entrypoint),
        "cmd": list(config.cmd),
        "workdir": config.workdir,
        "user": config.user,
        "env": [f"{name}={value}" for name, value in config.env],
        "labels": [f"{name}={value}" for name, value in config.labels],
        "volumes": list(config.volumes),
        **{name: list(lines) for name, lines in described.details},
    }


for _command in (gc, df, why, verify, pin, unpin, mount, umount):
    image.add_command(_command)
