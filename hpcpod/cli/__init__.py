# SPDX-License-Identifier: Apache-2.0
"""The commands.  Only here is anything printed for people, and only here does the program exit."""
