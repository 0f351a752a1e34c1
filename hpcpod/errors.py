# SPDX-License-Identifier: Apache-2.0
"""The error tree.  Library code raises these; only the command line prints them or exits.

Every error knows four things besides its sentence: a *hint* (what the reader can do), a *slug*
(stable, for scripts and documentation), an *exit code* and a *fault*: whose mistake it is.  The fault
decides what a scheduler hook does with it: Slurm drains a node whose prolog ends non-zero
(slurm.conf(5), Prolog), so only a node fault may end one that way.
"""

from __future__ import annotations

from enum import Enum

TYPE_CHECKING = False  # importing typing would be a sixth of a preparation's start (docs/adr/0005)
if TYPE_CHECKING:
    from typing import ClassVar

EXIT_HPCPOD = 125
"""hpcpod itself failed, before the program was started (as in docker-run(1) and podman-run(1))."""
EXIT_CANNOT_EXECUTE = 126
"""The program exists in the image but cannot be executed."""
EXIT_NOT_FOUND = 127
"""The program does not exist in the image."""
EXIT_USAGE = 2
"""The command line of a command other than ``run`` is wrong; ``run`` says 125."""


class Fault(Enum):
    """Who can mend it."""

    USER = "user"
    SITE = "site"
    NODE = "node"
    BUG = "bug"


def _printable(text: str) -> str:
    """Control characters and what is no text as escapes; backslashes stay, names brought theirs along."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode("ascii") for c in text
    )


class HpcpodError(Exception):
    """Root of all errors that hpcpod raises on purpose.

    message: one line: what, where, got and expected; lower case, no full stop.
    hint: what the reader can do about it, or None.
    """

    slug: ClassVar[str] = "internal"
    exit_code: ClassVar[int] = EXIT_HPCPOD
    fault: ClassVar[Fault] = Fault.BUG

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def lines(self) -> str:
        """What a terminal is shown: the message and the hint, a line each, whatever names stand in them."""
        hint = f"hint: {_printable(self.hint)}\n" if self.hint else ""
        return f"hpcpod: {_printable(self.message)} [{self.slug}]\n{hint}"


class UsageError(HpcpodError):
    """The command line, a configuration file or an environment variable of hpcpod's is wrong."""

    slug = "usage"
    fault = Fault.USER


class ImageReferenceError(UsageError):
    """An image reference that cannot be parsed."""

    slug = "image-reference"


class ImageNotFound(HpcpodError):
    """The reference is well-formed, but nothing is there."""

    slug = "image-not-found"
    fault = Fault.USER


class ImageInvalid(HpcpodError):
    """The image breaks a rule of its format, or of this program's safety rules."""

    slug = "image-invalid"
    fault = Fault.USER


class ImageDigestMismatch(ImageInvalid):
    """Bytes do not have the digest or the size that was promised for them."""

    slug = "image-digest"


class ImageLimitExceeded(ImageInvalid):
    """The image is larger, deeper or longer than a configured limit, which the message names."""

    slug = "image-limit"

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint or "the table [limits] of hpcpod.toml raises it")


class ImageUnsupported(HpcpodError):
    """The image is sound, but needs something of its format that this program does not do."""

    slug = "image-unsupported"
    fault = Fault.USER


class ImagePlatformMismatch(HpcpodError):
    """The image has nothing for this machine's operating system and architecture."""

    slug = "image-platform"
    fault = Fault.USER


class ImageUntrusted(HpcpodError):
    """A policy does not accept the image; the message names the rule, what it asks for, what was found."""

    slug = "image-untrusted"
    fault = Fault.USER


class TrustUnusable(HpcpodError):
    """A policy or a key cannot be read; until that is mended nothing is accepted."""

    slug = "trust-unusable"
    fault = Fault.SITE


class RegistryFailed(HpcpodError):
    """A registry could not be reached, or did not answer as the distribution specification says."""

    slug = "registry-failed"
    fault = Fault.SITE


class RegistryDenied(HpcpodError):
    """A registry wants credentials that it was not given, or does not accept those that it was."""

    slug = "registry-denied"
    fault = Fault.USER


class ImageInUse(HpcpodError):
    """The image cannot be removed: a pod runs from it."""

    slug = "image-in-use"
    fault = Fault.USER


class StoreUnusable(HpcpodError):
    """The image store cannot be used: permissions, owner, version."""

    slug = "store-unusable"
    fault = Fault.SITE


class StoreFull(HpcpodError):
    """No space or no quota left where the store lies."""

    slug = "store-full"
    fault = Fault.SITE


class MpiMismatch(HpcpodError):
    """Ranks would start as N worlds of size one: PMI served and MPI of the image do not fit."""

    slug = "mpi-mismatch"
    fault = Fault.USER


class ReportEmpty(HpcpodError):
    """There are no start-up events to report on."""

    slug = "report-empty"
    fault = Fault.USER


class SystemRefused(HpcpodError):
    """The operating system refused something that no other error here foresaw."""

    slug = "os-error"
    fault = Fault.SITE


def as_hpcpod_error(error: Exception, what: str = "input or output") -> HpcpodError:
    """What a command ends with for an exception that nothing handled.

    what: named where an OSError names no file.
    """
    if isinstance(error, HpcpodError):
        return error
    if isinstance(error, OSError) and error.strerror:
        names = [str(name) for name in (error.filename, error.filename2) if name is not None]
        return SystemRefused(f"{' to '.join(names) or what}: {error.strerror.lower()}")
    return HpcpodError(
        f"internal error: {type(error).__name__}: {error}", hint="run again with --debug and report it"
    )
