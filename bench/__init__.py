# SPDX-License-Identifier: Apache-2.0
"""Benchmarks of hpcpod against its peers on the same work: ``python -m bench --help``."""
