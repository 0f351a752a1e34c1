# SPDX-License-Identifier: Apache-2.0
"""``python3 -I -m hpcpod WORD…``: what the C front becomes for words that it does not carry out."""

from hpcpod.cli.main import main

if __name__ == "__main__":
    main()
