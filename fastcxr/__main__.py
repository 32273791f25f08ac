"""Entry point of `python -m fastcxr`."""

from fastcxr.cli.main import main

main()
