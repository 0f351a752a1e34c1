# SPDX-License-Identifier: Apache-2.0
"""From an image in a store to a pod that is ready, and eight users who want the same image at once."""
