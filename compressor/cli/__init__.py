"""Words <-> exit codes: the command line over the same functions that Python callers use."""

from compressor.cli.app import main

__all__ = ["main"]
