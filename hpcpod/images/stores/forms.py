# SPDX-License-Identifier: Apache-2.0
"""Which form an image takes in a store, and what the store calls it.  Pure."""

from __future__ import annotations

from hpcpod.errors import StoreUnusable, UsageError
from hpcpod.frozen import frozen
from hpcpod.images.sources.reference import is_digest
from hpcpod.model import Form

AUTO = "auto"
CHOICES = (AUTO, *(form.value for form in Form))
"""What ``--rootfs`` takes."""
FEW_INODES = 200_000
"""With fewer inodes left, a file system is kept from thousands of small files."""


@frozen
class FormFacts:
    """What the choice depends on.

    site: the store is the site's, and who fills it may mount.  erofs, squashfs: the kernel knows the file
    system.  mkfs_erofs, mksquashfs, squashfuse: paths of the programs, empty where they are not.
    shared: the store lies on a file system of the network.  inodes: free there, None where it has no bound.
    """

    site: bool
    erofs: bool
    squashfs: bool
    mkfs_erofs: str
    mksquashfs: str
    squashfuse: str
    shared: bool = False
    inodes: int | None = None


def parse_form(text: str, what: str) -> Form | None:
    """The form that was asked for; None for ``auto``.  Raises UsageError."""
    if text not in CHOICES:
        raise UsageError(f"{what} {text}: unknown", hint=f"one of: {', '.join(CHOICES)}")
    return None if text == AUTO else Form(text)


def entry_name(digest: str, form: Form) -> str:
    """Name of an image's directory in the store."""
    name = digest.replace(":", "-", 1)
    return name if form is Form.DIRECTORY else f"{name}.{form.value}"


def parse_entry(name: str) -> tuple[str, Form] | None:
    """Digest and form of an entry's name; None for what is no entry."""
    stem, dot, suffix = name.partition(".")
    digest = stem.replace("-", ":", 1)
    if (
        ":" in name
        or not is_digest(digest)
        or (dot and suffix not in (Form.SQUASHFS.value, Form.EROFS.value))
    ):
        return None
    return digest, Form(suffix) if dot else Form.DIRECTORY


def obstacle(form: Form, facts: FormFacts) -> str:
    """Why images of this form cannot be made and used here; empty where they can."""
    site = facts.site
    needs: dict[Form, tuple[tuple[object, str], ...]] = {
        Form.DIRECTORY: (),
        Form.EROFS: (
            (site, "only root mounts erofs, from the site's store (hpcpod image mount)"),
            (facts.erofs, "this kernel has no erofs"),
            (facts.mkfs_erofs, "mkfs.erofs is not installed (erofs-utils)"),
        ),
        Form.SQUASHFS: (
            (facts.mksquashfs, "mksquashfs is not installed (squashfs-tools)"),
            (facts.squashfs or not site, "this kernel has no squashfs"),
            (facts.squashfuse or site, "squashfuse_ll is not installed (squashfuse)"),
        ),
    }
    return next((reason for there, reason in needs[form] if not there), "")


def choose(wanted: Form | None, facts: FormFacts, preferred: Form | None = None) -> tuple[Form, str]:
    """The form to make, and why, in a few words.  Raises StoreUnusable for a wanted one that cannot be.

    preferred: what the site would have where it can be, and nothing is wanted.

    The site's store: one file per image, mounted once by the kernel for all users; erofs before squashfs, as
    it needs no loop device and less memory.  A user's store: a directory, which starts fastest without root;
    where it would be thousands of look-ups over a network, or too many inodes, squashfs.
    """
    if wanted is not None:
        reason = obstacle(wanted, facts)
        if reason:
            package = reason.rpartition("not installed (")[2].rstrip(")") if "not installed" in reason else ""
            install = f"install {package}; or " if package else ""
            raise StoreUnusable(
                f"rootfs {wanted.value}: {reason}", hint=f"{install}--rootfs=auto takes what is there"
            )
        return wanted, "asked for"
    if preferred is not None and not obstacle(preferred, facts):
        return preferred, "preferred by hpcpod.toml"
    return _best_for_site(facts) if facts.site else _best_for_user(facts)


def _best_for_site(facts: FormFacts) -> tuple[Form, str]:
    for form in (Form.EROFS, Form.SQUASHFS):
        if not obstacle(form, facts):
            return form, "one mount of the kernel serves all users"
    return Form.DIRECTORY, f"{obstacle(Form.EROFS, facts)}; {obstacle(Form.SQUASHFS, facts)}"


def _best_for_user(facts: FormFacts) -> tuple[Form, str]:
    if not obstacle(Form.SQUASHFS, facts):
        if facts.shared:
            return Form.SQUASHFS, "the store lies on a network: one file instead of thousands"
        if facts.inodes is not None and facts.inodes < FEW_INODES:
            return Form.SQUASHFS, f"only {facts.inodes} inodes are left"
    return Form.DIRECTORY, "starts fastest without root"


def form_facts_text(facts: FormFacts) -> str:
    """The facts in a line, for people."""
    have = [
        name
        for name, there in (
            ("kernel erofs", facts.erofs),
            ("kernel squashfs", facts.squashfs),
            ("mkfs.erofs", facts.mkfs_erofs),
            ("mksquashfs", facts.mksquashfs),
            ("squashfuse_ll", facts.squashfuse),
        )
        if there
    ]
    return (
        ", ".join([*have, *(["store on a network"] if facts.shared else [])]) or "nothing for packed images"
    )
