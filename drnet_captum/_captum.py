"""The parts of Captum that it does not export, imported here and nowhere else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from captum._utils.common import _expand_additional_forward_args as expand_additional_forward_args
from captum._utils.common import _format_additional_forward_args as format_additional_forward_args
from captum._utils.progress import progress
from captum.attr._utils.approximation_methods import approximation_parameters
from captum.log import log_usage as _log_usage

Function = TypeVar("Function", bound=Callable[..., Any])


def log_usage(function: Function) -> Function:
    """Captum's decorator of ``attribute``; its other classes call ``attribute.__wrapped__``."""
    decorated: Function = _log_usage(part_of_slo=True)(function)
    return decorated


__all__ = [
    "approximation_parameters",
    "expand_additional_forward_args",
    "format_additional_forward_args",
    "log_usage",
    "progress",
]
