# SPDX-License-Identifier: Apache-2.0
"""``docker://``: images of registries (the distribution specification, and Docker's Registry API v2)."""
