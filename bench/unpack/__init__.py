# SPDX-License-Identifier: Apache-2.0
"""From an OCI image layout to a tree that can be started: hpcpod against umoci."""
