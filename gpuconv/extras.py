"""Which packages the parts of gpuconv need beyond numpy, torch and triton, and how to get them."""

from collections.abc import Iterable
from importlib.util import find_spec

# By the name that is imported: the name that is installed. Also in pyproject.toml.
TRAIN = {
    "matplotlib": "matplotlib",
    "PIL": "pillow",
    "rich": "rich",
    "safetensors": "safetensors",
    "sklearn": "scikit-learn",
    "threadpoolctl": "threadpoolctl",
    "typer": "typer",
}
SEE = {"matplotlib": "matplotlib", "PIL": "pillow"}
BENCH = {"matplotlib": "matplotlib"}


def missing(needs: dict[str, str]) -> list[str]:
    """Those of the packages that are not installed; none is imported."""
    return [package for module, package in needs.items() if find_spec(module) is None]


def install(extra: str, packages: Iterable[str]) -> str:
    """How to get an extra, in words that hold wherever gpuconv came from, and which packages are missing."""
    return f"pip install 'gpuconv[{extra}]', or in a checkout pip install -e '.[{extra}]' (no {', '.join(packages)})"
