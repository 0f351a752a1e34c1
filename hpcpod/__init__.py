# SPDX-License-Identifier: Apache-2.0
"""hpcpod: start one verified, rootless pod per node of a batch job, and the job's ranks in it."""
