# SPDX-License-Identifier: Apache-2.0
"""Whether an image may run: policies, keys and signatures."""
