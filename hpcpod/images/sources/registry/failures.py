# SPDX-License-Identifier: Apache-2.0
"""What exceptions of urllib3, ssl and socket mean, in words."""

from __future__ import annotations

import errno
import os
import socket
import ssl

from hpcpod.images.sources.registry.patience import Patience
from hpcpod.images.sources.registry.trouble import Trouble, final
from hpcpod.log import shown

_REFUSALS = (
    errno.ECONNREFUSED,
    errno.EHOSTUNREACH,
    errno.ENETUNREACH,
    errno.EADDRNOTAVAIL,
    errno.EACCES,
    errno.EPERM,
)
"""Why there is no connection at all."""


def trouble_of(error: Exception, patience: Patience) -> Trouble:
    """What an exception of urllib3's, or below it, means; no URL is shown, they may hold secrets."""
    from urllib3 import exceptions

    causes = _causes(error)
    for cause in causes:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return final(
                f"its certificate is not accepted: {shown(cause.verify_message or 'verification failed')}",
                hint="containers-certs.d(5) says where the certificate of its authority goes",
            )
    through = "proxy: " if any(isinstance(cause, exceptions.ProxyError) for cause in causes) else ""
    if any(isinstance(cause, exceptions.NameResolutionError | socket.gaierror) for cause in causes):
        return Trouble(f"{through}its name cannot be resolved", few=True)
    refused = _refused(causes)
    if refused:
        return Trouble(f"{through}{refused}", few=True, unencrypted=True)
    if any(isinstance(cause, exceptions.ConnectTimeoutError) for cause in causes):
        return Trouble(f"{through}no connection within {patience.connect:g} s")
    if any(isinstance(cause, exceptions.ReadTimeoutError) for cause in causes):
        return Trouble(f"{through}silent for {patience.silence:g} s")
    return _broken(causes, through)


def _broken(causes: list[BaseException], through: str) -> Trouble:
    """A connection that stood, and broke."""
    for cause in causes:
        if isinstance(cause, ssl.SSLError):
            reason = cause.reason or "no TLS"
            words = shown(reason).lower().replace("_", " ")
            return Trouble(f"{through}TLS failed: {words}", again="EOF" in reason, unencrypted=True)
    return Trouble(f"{through}{_cut(causes)}", unencrypted=True)


def _causes(error: BaseException) -> list[BaseException]:
    """An exception with those that it carries, outermost first."""
    found: list[BaseException] = []
    waiting: list[BaseException] = [error]
    while waiting and len(found) < 32:
        cause = waiting.pop(0)
        if cause in found:
            continue
        found.append(cause)
        inner = (cause.__cause__, cause.__context__, getattr(cause, "reason", None), *cause.args)
        waiting += [item for item in inner if isinstance(item, BaseException)]
    return found


def _refused(causes: list[BaseException]) -> str:
    """The operating system's word for a connection that could not be made; empty for another failure."""
    for cause in causes:
        code = _system_errno(cause)
        if code in _REFUSALS:
            return f"{os.strerror(code).lower()} ({errno.errorcode[code]})"
    return ""


def _system_errno(cause: BaseException) -> int:
    """0 for none; the numbers of an SSLError are of another kind."""
    return cause.errno or 0 if isinstance(cause, OSError) and not isinstance(cause, ssl.SSLError) else 0


def _cut(causes: list[BaseException]) -> str:
    for cause in causes:
        if type(cause) is ConnectionAbortedError and isinstance(cause.args[0], str):
            return cause.args[0]  # of Watched
        code = _system_errno(cause)
        if code in errno.errorcode:
            return f"connection cut: {os.strerror(code).lower()} ({errno.errorcode[code]})"
    return "connection cut, or its answer is not HTTP"
