"""The packages of the extra ``distributed``, imported where they are used."""

from __future__ import annotations

from importlib import import_module
from typing import Any

EXTRA = 'pip install "drnet-captum[distributed]"'


def distributed(module: str) -> Any:
    """A module of the extra.

    Raises:
        ImportError: it is not installed; says how to.

    Example:
        >>> distributed("pyarrow").__name__
        'pyarrow'
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise ImportError(f"{module.partition('.')[0]} is needed for data sets: {EXTRA} ({error})") from error
