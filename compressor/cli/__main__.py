"""`python -m compressor.cli` is `compressor`."""

from compressor.cli.app import main

main()
