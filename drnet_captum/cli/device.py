"""The device that a command computes on."""

from __future__ import annotations

import torch


def find_device(name: str | None) -> torch.device:
    """A device by its name; None: the GPU where there is one, else the CPU.

    Raises:
        ValueError: no such name, or no such device on this machine.

    Example:
        >>> find_device("cpu")
        device(type='cpu')
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"unknown device {name!r}: expected one of {', '.join(devices())}") from error
    if device.type == "meta":
        raise ValueError(f'the device "meta" holds no values: expected one of {", ".join(devices())}')
    try:
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError, ImportError) as error:  # AssertionError: torch built without it
        reason = str(error).split(". ")[0].split("\n")[0] or type(error).__name__
        raise ValueError(f"the device {name!r} is not there, only {', '.join(devices())} ({reason})") from error
    return device


def devices() -> list[str]:
    """The names of the devices of this machine, as far as torch tells."""
    cuda = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    return ["cpu", *cuda, *(["mps"] if torch.backends.mps.is_available() else [])]
