"""Self-contained pages: templates, figures inside them and beside them, whole files."""

import base64
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from jaxtyping import Float
from jinja2 import Environment, PackageLoader, select_autoescape
from matplotlib.figure import Figure

from mixdpo_pyro.inference.verdict import ROPE
from mixdpo_pyro.io import written_whole
from mixdpo_pyro.reporting.figures.posterior import plot_cv

__all__ = [
    "PageFigure", "cv_figure", "embed_figures", "encode_images", "render_page", "write_images",
    "write_page",
]  # fmt: skip

_DPI = 180
"""Sharp on a phone's screen and in print; figures are about five inches wide."""


class PageFigure(NamedTuple):
    """A figure of a page.

    Attributes:
        title: Its title.
        alt: What it shows, for who does not see it.
        figure: The figure.
        note: A line below the title.
    """

    title: str
    alt: str
    figure: Figure
    note: str = ""


def cv_figure(
    draws: Float[np.ndarray, " draws"],
    interval: tuple[float, float] | None,
    true_cv: float | None = None,
) -> PageFigure:
    """The figure of the first screen: the posterior of cv, see `plot_cv`."""
    low, middle, high = np.quantile(draws, [0.05, 0.5, 0.95])
    verdict = "" if interval is None else f" The verdict gives {_range(interval)} (90%)."
    truth = "" if true_cv is None else f" The truth is {true_cv:.2f}."
    alt = (
        f"Posterior density of cv: median {middle:.2f}, 90% {_range((low, high))}, beside its "
        f"prior; below {ROPE:g} strengths count as equal.{verdict}{truth}"
    )
    return PageFigure("How much strengths differ", alt, plot_cv(draws, interval, true_cv))


def encode_images(figures: Mapping[str, Figure]) -> dict[str, bytes]:
    """Names of files, and figures as PNG and as SVG, which says nothing of the time."""
    images = {}
    for name, figure in figures.items():
        images[f"{name}.png"] = _encode(figure, "png")
        figure.set_layout_engine("none")  # as laid out for the first, which takes half of the time
        images[f"{name}.svg"] = _encode(figure, "svg")
    return images


def embed_figures(
    figures: Mapping[str, PageFigure],
) -> tuple[list[dict[str, str]], dict[str, bytes]]:
    """What a template shows of figures, and their images as `encode_images` gives them."""
    images = encode_images({name: each.figure for name, each in figures.items()})
    shown = [
        {
            "name": name,
            "title": each.title,
            "alt": each.alt,
            "note": each.note,
            "data": base64.b64encode(images[f"{name}.png"]).decode(),
        }
        for name, each in figures.items()
    ]
    return shown, images


def _encode(figure: Figure, kind: str) -> bytes:
    buffer = io.BytesIO()
    metadata = {"Date": None} if kind == "svg" else None
    with matplotlib.rc_context({"svg.hashsalt": "mixdpo"}):
        figure.savefig(buffer, format=kind, dpi=_DPI, metadata=metadata)
    return buffer.getvalue()


def _range(interval: tuple[float, float]) -> str:
    return f"{interval[0]:.2f} to {interval[1]:.2f}"


def render_page(template: str, **values: Any) -> str:
    """A page from one of the package's templates."""
    environment = Environment(
        loader=PackageLoader("mixdpo_pyro.reporting"),
        autoescape=select_autoescape(),
        trim_blocks=True,
    )
    return environment.get_template(template).render(**values)


def write_images(images: Mapping[str, bytes], folder: Path) -> None:
    """Write images into `figures/` of a folder, by the names of their files."""
    (folder / "figures").mkdir(exist_ok=True)
    for name, image in images.items():
        with written_whole(folder / "figures" / name) as temporary:
            temporary.write_bytes(image)


def write_page(page: str, path: Path) -> Path:
    """Write a page; return its path."""
    with written_whole(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path
