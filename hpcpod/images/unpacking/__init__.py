# SPDX-License-Identifier: Apache-2.0
"""From verified bytes to a tree of files, safe against whatever an archive holds."""
