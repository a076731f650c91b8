"""Packages that only experiments need: found when used, with a message that says what to install."""

import importlib
import importlib.metadata
from types import ModuleType


class MissingPackageError(ImportError):
    """A package of the extra ``experiments`` is not installed."""


def load(module: str) -> ModuleType:
    """Import a module of the extra, such as matplotlib.

    Raises:
        MissingPackageError: if it is not installed; says what to install.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingPackageError(
            f"{module} is not installed: pip install 'rsn2-kernels[experiments]' ({error})"
        ) from error


def version(distribution: str) -> str:
    """The version of a distribution; "not installed" if it is missing or runs from its sources."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
