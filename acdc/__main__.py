"""`python -m acdc`: the command line without the installed script."""

from acdc.cli import main

main()
