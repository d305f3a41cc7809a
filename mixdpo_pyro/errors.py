"""The errors a user can cause; the command line prints them as one line."""

__all__ = ["ConfigError", "DataError", "MixDPOError", "NonFiniteLossError", "OutputError"]


class MixDPOError(Exception):
    """Base of the errors that name what the user has to change."""


class ConfigError(MixDPOError, ValueError):
    """A configuration file or option is missing, unknown or out of its domain."""


class DataError(MixDPOError, ValueError):
    """A data file, column or row cannot be used."""


class OutputError(MixDPOError, ValueError):
    """An output folder cannot be written, or a run folder cannot be read."""


class NonFiniteLossError(MixDPOError, FloatingPointError):
    """A loss became NaN or infinite; the training, or the fit, stops at that step."""
