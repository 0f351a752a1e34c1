# SPDX-License-Identifier: Apache-2.0
"""Why an image is in a store or not: what ``hpcpod image why`` shows."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

from hpcpod.errors import ImageDigestMismatch, ImageNotFound
from hpcpod.images.limits import Limits
from hpcpod.images.sources.reference import is_digest, parse_reference
from hpcpod.images.stores import collect, usage
from hpcpod.images.stores.attach import no_verity
from hpcpod.images.stores.forms import choose, form_facts_text, parse_form
from hpcpod.images.stores.guards import MEANING, Guard, choose_guard
from hpcpod.images.stores.intact import Use, facts_of
from hpcpod.images.stores.store import Store, StoredImage, is_mounted
from hpcpod.images.stores.tools import form_facts
from hpcpod.images.stores.upkeep import find_stored, looks_like_digest
from hpcpod.log import size
from hpcpod.model import Form
from hpcpod.settings import Settings


def explain(
    stores: Sequence[Store], name: str, settings: Settings, limits: Limits
) -> list[dict[str, object]]:
    """A set of facts for each form of the image in each store; one that says why not where there is none.

    Raises UsageError (ambiguous), ImageReferenceError.
    """
    facts = []
    for store in stores:
        try:
            found = find_stored(store, name, limits)
        except ImageNotFound:
            facts.append(_absent(store, settings, name))
            continue
        order = [image.name for image in collect.select(collect.candidates(store), 1 << 62)]
        facts += [_present(store, image, order) for image in found]
    return facts


def _store_name(store: Store) -> str:
    return f"{'site' if store.site else 'user'} {store.directory}"


def _absent(store: Store, settings: Settings, name: str) -> dict[str, object]:
    facts = form_facts(store.directory, site=store.site)
    form, reason = choose(None, facts, parse_form(settings.rootfs, "rootfs"))
    filler = "root puts images there (image pull --site)" if store.site else "run or image pull puts it there"
    if is_digest(name) or looks_like_digest(name):
        filler = "no image of this digest; a reference says where one is"
    else:
        reference = parse_reference(name)
        if reference.transport != "docker" and not os.path.exists(reference.path):
            filler = f"cannot come there: nothing is at {reference.path}"
    return {
        "store": _store_name(store),
        "stored": "no",
        "how": filler,
        "form": f"{form.value}: {reason}",
        "node": form_facts_text(facts),
    }


def _present(store: Store, image: StoredImage, order: list[str]) -> dict[str, object]:
    kept = collect.kept_because(store, image, usage.read_mounts())
    turn = f"number {order.index(image.name) + 1} of {len(order)}" if image.name in order else "never"
    made = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(image.when))
    used = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(usage.last_used(store, image)))
    return {
        "store": _store_name(store),
        "stored": store.content(image.digest, Form(image.form)),
        "digest": image.digest,
        "reference": image.reference,
        "form": f"{image.form}: {image.why or 'asked for'}, when it was made",
        "made": f"{made}, in {image.seconds:.1f} s",
        "disk": size(image.disk),
        "mounted": _mounted(store, image),
        "guarded": _guarded(store, image),
        "last used": used,
        "kept": kept or "nothing keeps it",
        "collected": turn,
    }


def _mounted(store: Store, image: StoredImage) -> str:
    form = Form(image.form)
    if form is Form.DIRECTORY:
        return "needs no mount"
    if not store.site:
        return "by one FUSE server of yours while pods run from it"
    place = store.mount_point(image.digest, form)
    if is_mounted(place) and os.path.isdir(place):
        return place
    if form is Form.EROFS:
        return "no: only root mounts it (image mount); users' own runs unpack a copy of their own"
    return "no: only root mounts it for all (image mount); users' runs show it by FUSE"


def _guarded(store: Store, image: StoredImage) -> str:
    """What keeps it what it was packed as, while it is used."""
    form = Form(image.form)
    if form is Form.DIRECTORY:
        return f"by {Guard.NOTHING.value}: {MEANING[Guard.NOTHING]}"
    entry = store.path(image.digest, form)
    dm = no_verity(image, entry) if store.site else None
    try:
        fd = os.open(store.content(image.digest, form), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            guard, why = choose_guard(facts_of(fd, Use(image, entry, "", dm=dm)), "")
        finally:
            os.close(fd)
    except ImageDigestMismatch as error:
        return f"no: {error.message}"
    except OSError as error:
        return f"cannot be told: {os.strerror(error.errno or 0).lower()}"
    return f"{guard.value}: {MEANING[guard]}{f' ({why})' if why else ''}"
