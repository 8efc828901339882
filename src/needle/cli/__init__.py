"""The command line: `needle train`, `needle eval`, `needle info`, `needle cache` and others."""

from __future__ import annotations


def main() -> None:
    """Run the command line and exit; the console script `needle`.

    Exit codes: 0 success, 1 a needle error (one message, no traceback unless `--traceback`),
    2 wrong usage, 130 stopped with Ctrl-C, 143 stopped by SIGTERM.
    """
    # Imported here, so that `import needle` does not pay for the command line.
    from needle.cli.app import app

    app(prog_name="needle")
