# SPDX-License-Identifier: Apache-2.0
"""Start-up of N ranks on one node: hpcpod, its peers and a bare C floor, interleaved."""
