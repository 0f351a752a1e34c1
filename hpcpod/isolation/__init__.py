# SPDX-License-Identifier: Apache-2.0
"""What shuts a pod off: the system call filter; below native/ the C that makes, holds and enters pods."""
