# SPDX-License-Identifier: Apache-2.0
"""Planning, the sealed record, preparing a node, MPI wiring, start-up events and their report."""
