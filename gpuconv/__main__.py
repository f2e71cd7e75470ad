"""`gpuconv` and `python -m gpuconv`: the command line; without the packages that it needs, `--version` and `doctor`."""

import sys
from argparse import ArgumentParser

from gpuconv import packages, text


def main() -> None:
    """Run the command line on sys.argv and exit with its status."""
    text.print_anything()
    try:
        missing = packages.missing(packages.TRAIN)
        if missing:
            sys.exit(_base(sys.argv[1:], missing))
        from gpuconv.cli import main as cli

        sys.exit(cli.run(sys.argv[1:]))
    except KeyboardInterrupt:  # before or between what cli.run handles itself
        print("error: interrupted", file=sys.stderr)
        sys.exit(130)


def _base(arguments: list[str], missing: list[str]) -> int:
    """The base install's command line: version, `doctor`, else a line with what is missing. Returns the status."""
    needs = f"the command line needs: {packages.install('train', missing)}"
    parser = ArgumentParser("gpuconv", epilog=needs, add_help=False, exit_on_error=False)
    parser.add_argument("-h", "--help", action="store_true")
    parser.add_argument("--version", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("command", nargs="?")
    given, rest = parser.parse_known_args(arguments)
    if given.version:
        from gpuconv import __version__

        print(__version__)
    elif given.help or not arguments:
        print("Usage: gpuconv [--version] | doctor [--json]\n\nThe other commands are not here: " + needs)
        return 0
    elif given.command == "doctor" and not rest:
        import json

        from gpuconv.checking import installation

        found = installation.report()
        print(json.dumps(found, indent=2) if given.json else installation.text(found))
        return 0
    else:
        print(f"error: {needs}", file=sys.stderr)
        return 1
    print(f"note: {needs}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    main()
