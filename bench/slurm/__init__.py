# SPDX-License-Identifier: Apache-2.0
"""From srun to the last rank's main: plain and with hpcpod run, alternating, on a real Slurm."""
