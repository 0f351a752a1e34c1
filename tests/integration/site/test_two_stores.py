# SPDX-License-Identifier: Apache-2.0
"""The same image in the site's store, in root's own and in a user's: each is in use by its own pods alone."""

from __future__ import annotations

import json

import pytest

from tests.integration.site.conftest import FIRST_USER, Site

pytestmark = pytest.mark.needs("root", "plain", "userns", "overlay", "native", "fuse", "kernel-images")

ALICE = FIRST_USER


def kept(site: Site, uid: int) -> dict[str, str]:
    """What keeps the images of each store that this user sees, by the kind of the store."""
    stores = json.loads(site.out("image", "df", "--json", uid=uid))
    return {store["store"]: image["kept"] for store in stores for image in store["images"]}


@pytest.mark.parametrize("options", [[], ["--writable"]], ids=["bind", "overlay"])
@pytest.mark.parametrize("form", ["dir", "squashfs"])
def test_a_users_pod_keeps_no_other_copy(site: Site, small: str, form: str, options: list[str]) -> None:
    digest = site.out("image", "pull", f"--rootfs={form}", small, uid=ALICE)
    with site.running(ALICE, small, options=options):
        assert site.out("image", "pull", f"--rootfs={form}", small) == digest  # root's own
        site.out("image", "pull", "--site", f"--rootfs={form}", small)
        assert kept(site, 0) == {"site": "", "user": ""}
        site.out("image", "gc", "--site", "--all")
        site.out("image", "rm", digest)
        assert site.entries() == []
        assert "process" in kept(site, ALICE)["user"]
        site.refused("image", "rm", digest, slug="image-in-use", uid=ALICE)
    site.out("image", "rm", digest, uid=ALICE)


@pytest.mark.parametrize("options", [[], ["--writable"]], ids=["bind", "overlay"])
@pytest.mark.parametrize("form", ["dir", "squashfs", "erofs"])
def test_a_pod_of_the_sites_image_keeps_no_users_copy(
    site: Site, small: str, form: str, options: list[str]
) -> None:
    """Also after root has unmounted it."""
    own = "dir" if form == "erofs" else form
    digest = site.out("image", "pull", f"--rootfs={own}", small, uid=ALICE)
    site.out("image", "mount", f"--rootfs={form}", small)
    with site.running(ALICE, small, options=[f"--rootfs={form}", *options]):
        site.out("image", "rm", digest, uid=ALICE)
        for _ in range(2):
            found = site.refused("image", "rm", "--site", digest, slug="image-in-use")
            site.out("image", "umount", "--all")
        assert "runs in it" in found
        assert site.hpcpod("image", "gc", "--site", "--all").returncode == 0
        assert site.entries() != []
    site.out("image", "rm", "--site", digest)
    site.assert_idle()
