# SPDX-License-Identifier: Apache-2.0
"""No scheduler: a lone process, or ranks of an mpiexec on this node."""
