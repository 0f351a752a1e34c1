# SPDX-License-Identifier: Apache-2.0
"""Where images are kept on a node: made whole, found, shared, mounted, collected."""
