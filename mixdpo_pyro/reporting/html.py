"""Self-contained pages: templates, figures as PNG inside them and beside them, whole files."""

import base64
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, select_autoescape
from matplotlib.figure import Figure

from mixdpo_pyro.io import written_whole

__all__ = [
    "PageFigure", "embed_figures", "encode_png", "render_page", "write_images", "write_page",
]  # fmt: skip

PageFigure = tuple[str, str, Figure]
"""Title, alternative text and figure."""


def encode_png(figure: Figure, dpi: int | None = None) -> bytes:
    """A figure as PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi or "figure")
    return buffer.getvalue()


def embed_figures(
    figures: Mapping[str, PageFigure], dpi: int | None = None
) -> tuple[list[dict[str, str]], dict[str, bytes]]:
    """What a template shows of figures (`name`, `title`, `alt`, `data`), and their images."""
    images = {name: encode_png(figure, dpi) for name, (_, _, figure) in figures.items()}
    shown = [
        {"name": name, "title": title, "alt": alt, "data": base64.b64encode(images[name]).decode()}
        for name, (title, alt, _) in figures.items()
    ]
    return shown, images


def render_page(template: str, **values: Any) -> str:
    """A page from one of the package's templates."""
    environment = Environment(
        loader=PackageLoader("mixdpo_pyro.reporting"),
        autoescape=select_autoescape(),
        trim_blocks=True,
    )
    return environment.get_template(template).render(**values)


def write_images(images: Mapping[str, bytes], folder: Path) -> None:
    """Write `figures/NAME.png` into a folder."""
    (folder / "figures").mkdir(exist_ok=True)
    for name, image in images.items():
        with written_whole(folder / "figures" / f"{name}.png") as temporary:
            temporary.write_bytes(image)


def write_page(page: str, path: Path) -> Path:
    """Write a page; return its path."""
    with written_whole(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path
