"""Settings from text and YAML, and recipes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from edgekit.errors import UsageError
from edgekit.recipe import load_recipe
from edgekit.settings import build, parse_text, to_dict


@dataclass(frozen=True, kw_only=True)
class _Settings:
    share: float | None = None
    count: int = 3
    kind: Literal["a", "b"] = "a"
    layers: tuple[str, ...] = ()
    on: bool = True


def test_text_becomes_the_fields_types() -> None:
    found = build(_Settings, parse_text("share=0.5,count=7,kind=b,layers=[conv1,fc*],on=false"), what="x")
    assert found == _Settings(share=0.5, count=7, kind="b", layers=("conv1", "fc*"), on=False)
    assert build(_Settings, to_dict(found), what="x") == found
    assert build(_Settings, {"layers": ["conv1"]}, what="x").layers == ("conv1",)


@dataclass(frozen=True, kw_only=True)
class _Nesting:
    inner: _Settings | float = 0.0


def test_settings_within_settings() -> None:
    found = build(_Nesting, parse_text("inner=[count=7,layers=[a,b]]"), what="x")
    assert found == _Nesting(inner=_Settings(count=7, layers=("a", "b")))
    assert to_dict(found)["inner"]["layers"] == ["a", "b"]
    assert build(_Nesting, to_dict(found), what="x") == found
    assert build(_Nesting, {"inner": {"count": 7}}, what="x") == _Nesting(inner=_Settings(count=7))
    assert build(_Nesting, {"inner": "0.5"}, what="x") == _Nesting(inner=0.5)
    with pytest.raises(UsageError, match="x: inner has no setting 'number'"):
        build(_Nesting, {"inner": {"number": 7}}, what="x")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("shar=1", "did you mean share"),
        ("count=1.5", "no whole number"),
        ("count=many", "no whole number"),
        ("kind=c", "not one of a, b"),
        ("on=perhaps", "neither true nor false"),
        ("share", "="),
    ],
)
def test_what_does_not_fit_is_told(text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        build(_Settings, parse_text(text), what="x")
    assert message in str(caught.value).lower()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no list of steps"),
        ("- quantise", "Did you mean quantize"),
        ("- step: quantize\n  images: none", "images"),
        ("- images: 3", "names no step"),
        ("{a: [", "no YAML"),
        ("- !!python/object/apply:os.getcwd []", "no YAML"),
    ],
)
def test_a_wrong_recipe_is_told(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(UsageError, match=message):
        load_recipe(tmp_path / "r.yaml")


def test_a_recipe_of_both_forms(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("steps:\n- step: prune-channels\n  macs: 0.5\n- quantize\n")
    steps = load_recipe(tmp_path / "r.yaml")
    assert [step.to_dict()["step"] for step in steps] == ["prune-channels", "quantize"]
    with pytest.raises(UsageError, match="can't be read"):
        load_recipe(tmp_path / "missing.yaml")
