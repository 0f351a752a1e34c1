# SPDX-License-Identifier: Apache-2.0
"""Slurm: what srun and slurmstepd put into a task's environment."""
