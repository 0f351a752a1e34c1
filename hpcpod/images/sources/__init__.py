# SPDX-License-Identifier: Apache-2.0
"""Where images come from: references, transports, formats, and what a manifest says."""
