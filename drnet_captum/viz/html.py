"""HTML pages that need nothing beside themselves: a template, with its styles and scripts in it."""

from __future__ import annotations

from collections.abc import Callable
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup


def page(template: str, *, filters: dict[str, Callable[..., Any]], **values: Any) -> str:
    """A template of the package filled with values, which are escaped; a value that is missing is an error."""
    environment = Environment(
        loader=PackageLoader("drnet_captum.viz", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= filters
    return environment.get_template(template).render(**values)


def part(*names: str) -> Markup:
    """The styles or scripts of the package's own files, one after the other, as they are."""
    folder = files("drnet_captum.viz") / "templates"
    return Markup("".join((folder / name).read_text(encoding="utf-8") for name in names))
