# SPDX-License-Identifier: Apache-2.0
"""Tests in a virtual machine: what this machine's own kernel may lack.  One boot for a module's tests."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.testbed.guest import Guest, booted


@pytest.fixture(scope="module")
def guest() -> Iterator[Guest]:
    """A booted guest; tests that use it need "root" and "qemu"."""
    scratch = Path(tempfile.mkdtemp(prefix="hpcpod-vm-", dir="/dev/shm"))
    try:
        with booted(scratch) as running:
            yield running
    finally:
        shutil.rmtree(scratch)
