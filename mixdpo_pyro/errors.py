"""The errors a user can cause; the command line prints them as one line."""

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = [
    "ConfigError",
    "DataError",
    "MissingPackageError",
    "MixDPOError",
    "NonFiniteLossError",
    "OutputError",
    "extra_named",
]

EXTRAS = {
    "train": (
        "accelerate", "datasets", "huggingface_hub", "peft", "tokenizers", "transformers", "trl",
    ),
    "plots": ("arviz", "arviz_plots"),
    "sweep": ("dask", "distributed"),
}  # fmt: skip
"""Extra of this package -> what is imported of its packages, and of those that they bring."""


class MixDPOError(Exception):
    """Base of the errors that name what the user has to change."""


class ConfigError(MixDPOError, ValueError):
    """A configuration file or option is missing, unknown or out of its domain."""


class DataError(MixDPOError, ValueError):
    """A data file, column or row cannot be used."""


class MissingPackageError(MixDPOError, ModuleNotFoundError):
    """Something needs a package of an extra that is not installed."""


class OutputError(MixDPOError, ValueError):
    """An output folder cannot be written, or a run folder cannot be read."""


class NonFiniteLossError(MixDPOError, FloatingPointError):
    """A loss became NaN or infinite; the training, or the fit, stops at that step."""


@contextmanager
def extra_named(user: str) -> Iterator[None]:
    """Say what to install where the block imports a package of an extra that is not there.

    Args:
        user: What needs the package, the subject of the sentence.

    Raises:
        MissingPackageError: Naming package and extra.

    Example:
        >>> with extra_named("mixdpo train"):  # doctest: +ELLIPSIS
        ...     raise ModuleNotFoundError(name="trl.trainer")
        Traceback (most recent call last):
        mixdpo_pyro.errors.MissingPackageError: mixdpo train needs trl, which is not installed: ...
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        for extra, packages in EXTRAS.items():
            if package in packages:
                raise MissingPackageError(
                    f"{user} needs {package}, which is not installed: "
                    f"pip install 'mixdpo-pyro[{extra}]'"
                ) from error
        raise
