# SPDX-License-Identifier: Apache-2.0
"""Images: references, OCI layouts, verification, unpacking, and the store of unpacked trees."""
