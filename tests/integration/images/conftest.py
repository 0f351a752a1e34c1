# SPDX-License-Identifier: Apache-2.0
"""Places to unpack at, as a plain user and as root."""

from __future__ import annotations

import pytest

from tests.conftest import Account
from tests.testbed.places import Place
from tests.testbed.unpacking import Unpacking


@pytest.fixture(params=["user", pytest.param("root_user", marks=pytest.mark.needs("root"))])
def place(request: pytest.FixtureRequest) -> Place:
    """Where an image is unpacked, once per user."""
    account: Account = request.getfixturevalue(request.param)
    return Place(account)


@pytest.fixture
def plain_place(user: Account) -> Place:
    """The same for the plain user alone, where the user makes no difference."""
    return Place(user)


@pytest.fixture
def unpacking(user: Account) -> Unpacking:
    """``hpcpod image unpack`` as the plain user, watched."""
    return Unpacking(user)


@pytest.fixture(params=["user", pytest.param("root_user", marks=pytest.mark.needs("root"))])
def each_unpacking(request: pytest.FixtureRequest) -> Unpacking:
    """The same as the plain user and as root."""
    account: Account = request.getfixturevalue(request.param)
    return Unpacking(account)
