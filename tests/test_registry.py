"""The registry, its entry points, the names that are public, and the docstrings of the classes."""

from __future__ import annotations

import re
from types import SimpleNamespace

import captum.attr
import pytest
from captum.attr import Attribution
from methods import CASES, NAMES, make
from models import ConvNet, seeded

import drnet_captum as dc
from drnet_captum import registry


class Other(dc.GradCAM):
    """A method of another package."""


OTHER = dc.Method("other", Other, "Other", "Somebody 2030, arXiv 3001.00001", "layer and gradient", "layer")


def test_the_table_of_the_tests_covers_the_registry():
    assert sorted(dc.methods()) == NAMES


def test_names():
    for name, method in dc.methods().items():
        assert name == method.name == name.lower() and name.isidentifier()
        assert re.search(r"\b(19|20)\d\d\b", method.paper) and re.search(r"arXiv \d{4}\.\d{4,5}|IEEE", method.paper)
        assert method.output == CASES[name].output
        assert issubclass(method.cls, Attribution)
    titles = [method.title for method in dc.methods().values()]
    assert len(set(titles)) == len(titles)


@pytest.mark.parametrize("name", [n for n in NAMES if n != "saliency"])
def test_titles_agree_with_the_names_of_the_classes(name):
    def letters(text: str) -> str:
        return re.sub("[^a-z+×]", "", text.lower())

    assert letters(make(name, seeded(ConvNet)).get_name()) == letters(dc.methods()[name].title)


@pytest.mark.parametrize("name", NAMES)
def test_the_registry_says_how_a_class_is_made(name):
    method, model = dc.methods()[name], seeded(ConvNet)
    method.cls(model, "relu2") if method.uses_layer else method.cls(model)
    assert method.uses_layer == bool(CASES[name].init)
    assert method.signed == (name != "saliency")


@pytest.fixture
def entries(monkeypatch):
    """What other packages declare."""
    found: list[SimpleNamespace] = []

    def entry_points(group: str) -> list[SimpleNamespace]:
        assert group == "drnet_captum.methods"
        return found

    monkeypatch.setattr(registry, "entry_points", entry_points)
    return found


@pytest.mark.parametrize("loaded", [OTHER, lambda: OTHER])
def test_other_packages_add_methods(entries, loaded):
    entries.append(SimpleNamespace(name="other", load=lambda: loaded))
    assert list(dc.methods()) == [*[m.name for m in registry.BUILT_IN], "other"]
    assert dc.methods()["other"] is OTHER
    entries.clear()
    assert "other" not in dc.methods()


def test_a_name_that_is_taken_raises(entries):
    method = dc.Method("grad_cam", Other, "Other", "", "layer and gradient", "layer")
    entries.append(SimpleNamespace(name="mine", load=lambda: method))
    with pytest.raises(ValueError, match=r"'mine'.*'grad_cam', which exists"):
        dc.methods()


def test_an_entry_point_that_gives_no_method_raises(entries):
    entries.append(SimpleNamespace(name="mine", load=lambda: dict))
    with pytest.raises(TypeError, match=r"'mine'.*got dict"):
        dc.methods()


def test_register_with_captum(entries, monkeypatch):
    ours = {m.cls.__name__: m.cls for m in dc.methods().values() if m.cls.__module__.startswith("drnet_captum")}
    ours |= {"DRNetDissection": dc.DRNetDissection, "DRISE": dc.DRISE}
    for name, cls in ours.items():  # as if nobody had called it yet in this process
        if vars(captum.attr).get(name) is cls:
            monkeypatch.delattr(captum.attr, name)
    before = dict(vars(captum.attr))
    missing = sorted(ours.keys() - before.keys())
    assert "GradCAM" in missing and "GuidedBackprop" not in missing
    try:
        assert sorted(dc.register_with_captum()) == missing
        once = dict(vars(captum.attr))
        assert once == {**before, **{name: ours[name] for name in missing}}
        assert sorted(dc.register_with_captum()) == missing
        assert dict(vars(captum.attr)) == once
    finally:
        for name in missing:
            vars(captum.attr).pop(name, None)


def test_public_names():
    assert len(dc.__all__) == len(set(dc.__all__))  # their order is ruff's, constants first
    assert all(hasattr(dc, name) for name in dc.__all__)
    classes = {m.cls.__name__ for m in registry.BUILT_IN}
    assert classes <= set(dc.__all__)
    made_here = {n for n, v in vars(dc).items() if getattr(v, "__module__", "").startswith("drnet_captum")}
    assert {name for name in made_here if not name.startswith("_")} <= set(dc.__all__)


@pytest.mark.parametrize("cls", [m.cls for m in registry.BUILT_IN if m.cls is not dc.Saliency])
def test_docstrings(cls):
    """A source and an example (which runs: the docstrings are tests too); a formula or a rule."""
    text = cls.__doc__
    assert re.search(r"Source: .*(arXiv \d{4}\.\d{4,5}|IEEE)", text, re.DOTALL)
    assert "Example:" in text and ">>>" in text
    assert ".. math::" in text or ":math:" in text
    assert "Returns" in text
    paper = next(m.paper for m in registry.BUILT_IN if m.cls is cls)
    number = re.search(r"\d{4}\.\d{4,5}", paper)
    assert number is None or number.group() in text
