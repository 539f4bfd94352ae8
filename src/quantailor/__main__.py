"""`python -m quantailor` is `quantailor`."""

from quantailor.cli import main

main()
