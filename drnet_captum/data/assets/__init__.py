"""The files that come with the package; README.md beside them says from where and under which licences."""

from importlib.resources import files
from pathlib import Path


def asset(name: str) -> Path:
    """The path of a file of this folder."""
    return Path(str(files(__name__) / name))
