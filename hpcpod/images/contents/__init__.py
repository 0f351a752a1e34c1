# SPDX-License-Identifier: Apache-2.0
"""What an unpacked image holds, as far as starting it needs to know."""
