"""`python -m fastcxr` is the command `fastcxr`."""

from fastcxr.cli import main

main()
