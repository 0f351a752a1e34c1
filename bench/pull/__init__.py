# SPDX-License-Identifier: Apache-2.0
"""Pulling an image from a registry on loopback, to runnable, beside other tools."""
