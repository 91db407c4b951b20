"""`python -m acdc`: the command line without the installed script."""

from acdc.cli.main import main

main()
