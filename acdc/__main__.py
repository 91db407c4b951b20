"""The way into the command line, for the installed script and for `python -m acdc`."""

import sys


def main() -> None:
    """Run the `acdc` command; an interruption while it is still being imported is one line too."""
    try:
        from acdc.cli.main import main as command
    except KeyboardInterrupt:
        print("interrupted: nothing was written", file=sys.stderr)
        sys.exit(130)
    command()


if __name__ == "__main__":
    main()
