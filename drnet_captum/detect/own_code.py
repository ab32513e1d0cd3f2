"""A detector from the caller's own Python code, by file or module and name."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from .adapt import as_detector
from .detector import Detector


def own_detector(spec: str) -> Detector:
    """The detector at "FILE.py:NAME" or "package.module:NAME"; the file is run, its folder is where it imports from.

    Args:
        spec: NAME is a detector, a function of images, or a class to be instantiated without arguments.

    Raises:
        ValueError: another form, no such module or name, a class that wants arguments.
        FileNotFoundError: no such file.
        TypeError: something that is no detector.
    """
    where, _, name = spec.rpartition(":")
    if not where or not name:
        raise ValueError(f"expected python:FILE.py:NAME or python:package.module:NAME, got python:{spec}")
    module = _file(Path(where)) if where.endswith(".py") else _module(where)
    if not hasattr(module, name):
        near = get_close_matches(name, [n for n in vars(module) if not n.startswith("_")], n=3)
        hint = f": did you mean {', '.join(near)}?" if near else ""
        raise ValueError(f"{where} has no {name!r}{hint}")
    found: Any = getattr(module, name)
    if isinstance(found, type):
        try:
            found = found()
        except TypeError as error:
            raise ValueError(
                f"{name} could not be made without arguments ({error}): add to {where} a line like "
                f"detector = {name}(…), and name that"
            ) from error
    if isinstance(found, nn.Module):
        found.eval()
    if isinstance(found, Detector):
        return found
    names = (
        getattr(holder, key, None)
        for holder, key in ((found, "categories"), (module, "categories"), (module, "CLASSES"))
    )
    detector = as_detector(found, categories=next((given for given in names if given is not None), None))
    detector.name = name if not where.endswith(".py") else f"{Path(where).stem}:{name}"
    return detector


def _file(path: Path) -> ModuleType:
    """The file as a module; under a name of its own, so that it hides no installed package."""
    if not path.is_file():
        raise FileNotFoundError(f"no Python file at {path}")
    module_name = f"_drnet_captum_detector_{path.stem}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path} is no Python file that can be imported")
    module = importlib.util.module_from_spec(spec)
    folder = str(path.resolve().parent)
    sys.modules[module_name] = module  # dataclasses and pickles look their module up
    sys.path.insert(0, folder)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[module_name]
        raise
    finally:
        sys.path.remove(folder)
    return module


def _module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and not f"{name}.".startswith(f"{error.name}."):
            raise
        raise ValueError(f"no module {name!r} is installed: name a file, python:FILE.py:NAME") from error
