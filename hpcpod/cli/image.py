# SPDX-License-Identifier: Apache-2.0
"""``hpcpod image``: unpack, pull, list, inspect and remove images."""

from __future__ import annotations

import json
import os
import time

import click

from hpcpod.frozen import replace
from hpcpod.images import upkeep
from hpcpod.images.destination import unpack_to
from hpcpod.images.layout import open_layout
from hpcpod.images.limits import DEFAULT_LIMITS, Limits
from hpcpod.images.platforms import parse_platform, platform_of
from hpcpod.images.reference import parse_reference
from hpcpod.images.resolve import Documents, find_manifest, read_documents
from hpcpod.images.store import Store, StoredImage, ensure, open_store
from hpcpod.launcher.request import parse_size
from hpcpod.log import StderrProgress, shown, size
from hpcpod.model import Platform

SHORT = 19
"""Characters of a digest in tables: sha256: and 12 digits."""

_PLATFORM = click.option(
    "--platform", metavar="OS/ARCH[/VARIANT]", help="Take this platform from the image, not this machine's."
)
_MAX_BYTES = click.option(
    "--max-bytes", metavar="N", help="Refuse an image that unpacks to more bytes (2G, 512M; default 512G)."
)


@click.group()
def image() -> None:
    """Unpack, verify and keep images."""


def _limits(max_bytes: str | None) -> Limits:
    if max_bytes is None:
        return DEFAULT_LIMITS
    return replace(DEFAULT_LIMITS, bytes_out=parse_size(max_bytes, "option --max-bytes"))


def _platform(text: str | None) -> Platform:
    return parse_platform(text) if text else platform_of(os.uname().machine)


def _note_skipped(progress: StderrProgress, count: int) -> None:
    if count:
        things = "device or FIFO" if count == 1 else "devices and FIFOs"
        progress.note(f"left out {count} {things} of the image: a pod has the node's devices")


@image.command()
@_MAX_BYTES
@_PLATFORM
@click.argument("reference", metavar="REF")
@click.argument("destination", metavar="DEST")
def unpack(reference: str, destination: str, max_bytes: str | None, platform: str | None) -> None:
    """Unpack the image REF to the new directory DEST.

    Every byte is verified before DEST appears; on an error nothing is left behind.
    """
    progress = StderrProgress()
    _, unpacked = unpack_to(
        parse_reference(reference), destination, _platform(platform), _limits(max_bytes), progress
    )
    _note_skipped(progress, unpacked.skipped)


@image.command()
@_MAX_BYTES
@_PLATFORM
@click.argument("reference", metavar="REF")
def pull(reference: str, max_bytes: str | None, platform: str | None) -> None:
    """Verify and unpack the image REF into the store.

    Prints the digest of its manifest.
    """
    progress = StderrProgress()
    found, phases, _ = ensure(
        reference,
        environment=os.environ,
        uid=os.getuid(),
        platform=_platform(platform),
        limits=_limits(max_bytes),
        progress=progress,
    )
    stored = _store().stored(found.digest)
    if stored is not None and any(phase.name == "unpack" for phase in phases):
        _note_skipped(progress, stored.skipped)
    click.echo(found.digest)


def _store() -> Store:
    return open_store(os.environ, os.getuid())


def _as_json(meta: StoredImage) -> dict[str, object]:
    return {**vars(meta), "rootfs": f"{_store().path(meta.digest)}/rootfs"}


@image.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")
def list_images(as_json: bool) -> None:
    """Show the images in the store, newest first."""
    store = _store()
    found = store.all()
    if as_json:
        click.echo(json.dumps([_as_json(meta) for meta in found], indent=2))
        return
    if not found:
        StderrProgress().note(f"no images in {shown(store.directory)}")
        return
    rows = [("DIGEST", "PLATFORM", "SIZE", "UNPACKED", "REFERENCE")]
    for meta in found:
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(meta.when))
        rows.append((meta.digest[:SHORT], shown(meta.platform), size(meta.size), when, shown(meta.reference)))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        click.echo("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())


@image.command()
@click.argument("names", metavar="REF|DIGEST...", nargs=-1, required=True)
def rm(names: tuple[str, ...]) -> None:
    """Remove images from the store.

    They are named by reference, by digest, or by the digest's first 8 digits or more.  An
    image that a pod of yours runs from is kept, with an error.
    """
    store = _store()
    digests = [upkeep.find_stored(store, name, DEFAULT_LIMITS) for name in names]
    for digest in dict.fromkeys(digests):
        upkeep.remove(store, digest)
        click.echo(digest)


@image.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")
@_PLATFORM
@click.argument("reference", metavar="REF")
def inspect(reference: str, as_json: bool, platform: str | None) -> None:
    """Show what the image REF is, without unpacking it."""
    parsed = parse_reference(reference)
    wanted = _platform(platform)
    with open_layout(parsed, DEFAULT_LIMITS) as layout:
        descriptor = find_manifest(layout, parsed, wanted, DEFAULT_LIMITS)
        documents = read_documents(layout, descriptor, wanted, DEFAULT_LIMITS)
    facts = _facts(reference, documents)
    if as_json:
        click.echo(json.dumps(facts, indent=2))
        return
    facts["layers"] = [
        f"{layer.blob.digest} {layer.compression.value} {size(layer.blob.size)}" for layer in documents.layers
    ]
    for name, value in facts.items():
        lines = value if isinstance(value, list) else [value]
        for number, line in enumerate(lines or [""]):
            click.echo(f"{name if not number else '':<12}{shown(str(line)) or '-'}")


def _facts(reference: str, documents: Documents) -> dict[str, object]:
    config = documents.config.config
    stored = _store().stored(documents.descriptor.digest)
    return {
        "reference": reference,
        "digest": documents.descriptor.digest,
        "platform": str(documents.config.platform),
        "stored": f"{_store().path(documents.descriptor.digest)}/rootfs" if stored else "",
        "layers": [
            f"{layer.blob.digest} {layer.compression.value} {layer.blob.size}" for layer in documents.layers
        ],
        "entrypoint": list(config.entrypoint),
        "cmd": list(config.cmd),
        "workdir": config.workdir,
        "user": config.user,
        "env": [f"{name}={value}" for name, value in config.env],
        "labels": [f"{name}={value}" for name, value in config.labels],
        "volumes": list(config.volumes),
    }
