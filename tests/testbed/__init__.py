# SPDX-License-Identifier: Apache-2.0
"""A real multi-node Slurm on one machine, and the real images that run on it."""
