# SPDX-License-Identifier: Apache-2.0
"""The credentials for a repository: from files, or from the program that keeps them.

A helper is docker-credential-NAME (github.com/docker/docker-credential-helpers): the registry on its standard
input, JSON on its standard output.  No secret is ever in argv, in an environment or in a message.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping

from hpcpod.errors import UsageError
from hpcpod.images.sources.registry.authfile import (
    AuthFile,
    Credentials,
    Lookup,
    is_helper,
    look_up,
    parse_helper,
    server_of,
)
from hpcpod.images.sources.registry.conf import AUTH_FILES
from hpcpod.images.sources.registry.files import read_auth_files
from hpcpod.log import shown

HELPER_SECONDS = 60.0
"""A helper may have to ask its user."""
ANSWER = 1 << 20
"""Bytes of a helper's answer."""
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_PASSED = frozenset({"HOME", "USER", "LOGNAME", "TMPDIR", "DOCKER_CONFIG"})
_PASSED_PREFIXES = (
    *("LANG", "LC_", "XDG_", "DBUS_SESSION_BUS_", "DISPLAY", "WAYLAND_DISPLAY", "XAUTHORITY"),
    *("GNUPGHOME", "GPG_TTY", "PASSWORD_STORE_", "SSL_CERT_", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"),
    *(
        "http_proxy",
        "https_proxy",
        "no_proxy",
        "AWS_",
        "AZURE_",
        "GOOGLE_",
        "CLOUDSDK_",
        "GCR_",
        "ACR_",
        "ECR_",
    ),
)
"""The helpers of cloud registries find their own accounts by these."""
_NONE_THERE = ("credentials not found", "no credentials")


def helper_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """What a helper is given: the search path, and what helpers are known to need; nothing else."""
    passed = {
        name: value
        for name, value in environment.items()
        if name in _PASSED or name.startswith(_PASSED_PREFIXES)
    }
    return {"PATH": environment.get("PATH") or _PATH, **passed}


class Keyring:
    """Finds credentials, each only once.  May be asked from any thread."""

    def __init__(self, environment: Mapping[str, str], helpers: tuple[str, ...] | None = None) -> None:
        self._environment = environment
        self._helpers = helpers or (AUTH_FILES,)
        self._files: tuple[tuple[str, AuthFile], ...] | None = None
        self._known: dict[tuple[str, str], Credentials | None] = {}
        self._lock = threading.Lock()

    def find(self, host: str, path: str) -> Credentials | None:
        """Those for a repository; None where nobody has any.  Raises UsageError, SystemRefused."""
        with self._lock:
            if (host, path) not in self._known:
                self._known[host, path] = self._look(host, path)
            return self._known[host, path]

    def _look(self, host: str, path: str) -> Credentials | None:
        for helper in self._helpers:
            if helper != AUTH_FILES:
                found = self._ask(helper, server_of(host))
            else:
                found = self._from_files(host, path)
            if found is not None:
                return found
        return None

    def _from_files(self, host: str, path: str) -> Credentials | None:
        if self._files is None:
            self._files = read_auth_files(self._environment)
        for _, file in self._files:
            entry: Lookup | None = look_up(file, host, path)
            if entry is None:
                continue
            found = entry.credentials or self._ask(entry.helper, entry.server)
            if found is not None:
                return found
        return None

    def _ask(self, name: str, server: str) -> Credentials | None:
        import shutil
        import subprocess

        if not is_helper(name):
            raise UsageError(f"credential helper {shown(name)}: not a name of one")
        environment = helper_environment(self._environment)
        program = shutil.which(f"docker-credential-{name}", path=environment["PATH"])
        if program is None:
            raise UsageError(
                f"credential helper docker-credential-{name}: not on PATH",
                hint="credHelpers or credsStore names it (containers-auth.json(5))",
            )
        try:
            done = subprocess.run(
                [program, "get"],
                input=server.encode(),
                capture_output=True,
                env=environment,
                cwd="/",
                timeout=HELPER_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise UsageError(f"docker-credential-{name}: no answer within {HELPER_SECONDS:.0f} s") from None
        except OSError as error:
            raise UsageError(f"docker-credential-{name}: {os.strerror(error.errno or 0).lower()}") from None
        if done.returncode != 0:
            answer = (done.stdout + done.stderr)[:4096].decode(errors="replace").lower()
            if any(text in answer for text in _NONE_THERE):
                return None
            raise UsageError(f"docker-credential-{name}: ended with status {done.returncode}")
        if len(done.stdout) > ANSWER:
            raise UsageError(f"docker-credential-{name}: an answer of more than {ANSWER} bytes")
        return parse_helper(done.stdout, name)
