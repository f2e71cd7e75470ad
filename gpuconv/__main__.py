"""`gpuconv` and `python -m gpuconv`: the command line, or one line saying what it needs."""

import sys
from importlib.util import find_spec

_NEEDS = {
    "matplotlib": "matplotlib",
    "PIL": "pillow",
    "rich": "rich",
    "safetensors": "safetensors",
    "sklearn": "scikit-learn",
    "typer": "typer",
}


def main() -> None:
    """Run the command line on sys.argv and exit with its status."""
    missing = [package for module, package in _NEEDS.items() if find_spec(module) is None]
    if missing:
        print(f"error: the command line needs: pip install 'gpuconv[train]' (no {', '.join(missing)})", file=sys.stderr)
        sys.exit(1)
    try:
        from gpuconv import cli

        sys.exit(cli.run(sys.argv[1:]))
    except KeyboardInterrupt:  # before or between what cli.run handles itself
        print("error: interrupted", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
