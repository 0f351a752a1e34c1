# SPDX-License-Identifier: Apache-2.0
"""One module per target; each defines TARGET."""
