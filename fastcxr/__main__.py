"""`python -m fastcxr` is the command `fastcxr`."""

from fastcxr.cli.main import main

main()
