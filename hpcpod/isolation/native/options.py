# SPDX-License-Identifier: Apache-2.0
"""Print options.h: how many words each option of ``hpcpod run`` takes, for the C front.

Run by the build: ``options.py hpcpod/launcher/options.py > options.h``.  It executes the table alone, since
the package is not installed at that moment.
"""

import runpy
import sys


def header(table_path: str) -> str:
    """The text of options.h for the table in this file."""
    table = runpy.run_path(table_path, run_name="options")["RUN_OPTIONS"]
    rows = [f"\t{{\"{o.name}\", '{o.short or chr(92) + '0'}', {int(bool(o.metavar))}}}," for o in table]
    return "\n".join(
        [
            "/* Made from hpcpod/launcher/options.py; do not edit. */",
            "static const struct { const char *name; char shortname; int takes_value; } run_options[] = {",
            *rows,
            "};",
            "",
        ]
    )


if __name__ == "__main__":
    sys.stdout.write(header(sys.argv[1]))
