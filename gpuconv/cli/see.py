"""The command `gpuconv see`; `gpuconv.cli.main` puts it on the command line."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from gpuconv import packages
from gpuconv.errors import UserError
from gpuconv.see import model_sources, page, terminal, tour, your_model
from gpuconv.see.layers import activation_maps, convolutions
from gpuconv.see.translations import LANGUAGES, Translation
from gpuconv.text import printable
from gpuconv.train import run as runs


def see(
    target: Annotated[
        str,
        typer.Argument(
            help="tour, or a model: the folder of a run, timm:NAME or torchvision:NAME.",
            show_default=False,
            metavar="tour|RUN|timm:NAME|torchvision:NAME",
        ),
    ],
    image: Annotated[
        list[Path] | None,
        typer.Option(
            show_default=False,
            help="An image to look at: a picture, or a .npy file [C, H, W]. Repeatable. A run has images of its own.",
        ),
    ] = None,
    layer: Annotated[
        str | None, typer.Option(show_default=False, help="The layer to see. Default: the first convolution.")
    ] = None,
    layers: Annotated[bool, typer.Option("--layers", help="List the model's convolutions and stop.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            show_default=False,
            help="Folder for the page and its pictures; in a run's folder they go to see/. Default: runs/see-<time>.",
        ),
    ] = None,
    lang: Annotated[str, typer.Option(help=f"Language of the page: {', '.join(LANGUAGES)}.")] = "en",
    size: Annotated[
        int | None,
        typer.Option(
            show_default=False,
            min=8,
            help=f"Longer side of the image in pixels. Default: {model_sources.DEFAULT_SIDE}.",
        ),
    ] = None,
    untrained: Annotated[
        bool, typer.Option("--untrained", help="Random weights for timm: and torchvision: models; needs no network.")
    ] = False,
) -> None:
    """Show what a convolution layer does: a tour in seven chapters, or your own model on your own image.

    Makes one page that needs no network, and the pictures in it as PNG files.
    """
    Translation(lang)  # a wrong language is an error before anything takes time
    missing = packages.missing(packages.SEE)
    if missing:
        raise UserError(f"gpuconv see needs: {packages.install('see', missing)}")
    folder = page.folder_for(out) if out else runs.new_folder("see")
    if not layers:
        page.check_writable(folder)
    if target == "tour":
        if image or layer or layers:
            raise UserError("the tour has its own model and images: --image, --layer and --layers are for a model")
        written = tour.write_page(folder, lang, say=_say)
    else:
        loaded = model_sources.load(target, trained=not (untrained or layers))
        if layers:
            print(_listed(loaded))
            return
        seen = your_model.view(loaded, image or [], layer, size)
        if sys.stdout.isatty() and "NO_COLOR" not in os.environ:
            _show(seen)
        written = your_model.write_page(seen, folder, lang, _say)
    print(f"page  {printable(written)} ({written.stat().st_size / 1e6:.1f} MB)")


def _say(line: str) -> None:
    print(printable(line), file=sys.stderr)


def _show(seen: your_model.View) -> None:
    maps = activation_maps(seen.loaded.model, seen.inputs[0], seen.layer).values
    print(terminal.compact(seen.images[0], maps, your_model.strongest(maps)))


def _listed(loaded: model_sources.LoadedModel) -> str:
    found = {printable(name): module for name, module in convolutions(loaded.model).items()}
    width = max(len(name) for name in found)
    return "\n".join(
        f"{name:{width}}  {module.out_channels} filters of "
        f"{' × '.join(map(str, (module.in_channels // module.groups, *module.kernel_size)))}, "
        f"stride {module.stride[0]}, groups {module.groups}"
        for name, module in found.items()
    )
