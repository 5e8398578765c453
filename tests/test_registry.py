import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import pytest

from mm import registry
from mm.config import BadInput, Count, Positive, Rate, Scale, Share


@registry.register("test", "thing")
class Thing:
    def __init__(
        self,
        *,
        width: int,
        rate: float = 0.5,
        kind: Literal["a", "b"] = "a",
        name_or_none: str | None = None,
        sizes: tuple[int, ...] = (),
        group: Mapping | None = None,
        given: object = None,
    ):
        if width == 13:
            raise BadInput("width=13 is unlucky; take 14")
        self.values = (width, rate, kind, name_or_none, sizes, group, given)


def build(**spec):
    return registry.build("test", {"name": "thing", **spec}, "config.x", given=7).values


@dataclasses.dataclass(kw_only=True)
class Limits:
    depth: Count = 0


@registry.register("test", "limited")
class Limited:
    def __init__(
        self,
        *,
        share: Share = 0.5,
        some: Share | Literal["all"] = "all",
        rate: Rate = 0.0,
        scale: Scale = 1.0,
        window: Positive | None = None,
        **limits: Annotated[Any, Limits],
    ):
        self.values = (share, rate, scale, window, limits)


@pytest.mark.parametrize(
    "spec, message",
    [
        (dict(share=1.5), "config.x.share=1.5: expected 0 to 1"),
        (dict(share=True), "config.x.share=True: expected float"),
        (dict(rate=1), "config.x.rate=1.0: expected at least 0 and less than 1"),
        (dict(scale=0), "config.x.scale=0.0: expected above 0"),
        (dict(scale=float("nan")), "config.x.scale=nan: expected above 0"),
        (dict(window=0), "config.x.window=0: expected"),
        (dict(depth=-1), "config.x.depth=-1: expected at least 0"),
        (dict(some="most"), "some='most': expected float 0 to 1 or 'all', got str"),
        (dict(some=1.5), "some=1.5: expected float 0 to 1 or 'all', got float"),
    ],
)
def test_a_number_out_of_its_range_is_refused(spec, message):
    with pytest.raises(BadInput, match=message):
        registry.build("test", {"name": "limited", **spec}, "config.x")


def test_numbers_in_their_ranges_are_taken():
    spec = dict(name="limited", share=1, rate=0.0, scale=0.1, window=1, depth=0)
    found = registry.build("test", spec, "config.x").values
    assert found == (1.0, 0.0, 0.1, 1, {"depth": 0}) and type(found[0]) is float


def test_builds_with_config_and_given_values():
    assert build(width=3, sizes=[1, 2]) == (3, 0.5, "a", None, (1, 2), None, 7)


@dataclasses.dataclass(kw_only=True)
class Rest:
    depth: int
    rate: float = 0.5


@registry.register("test", "open")
class Open:
    def __init__(self, *, width: int, **rest: Annotated[Any, Rest]):
        self.rest = Rest(**rest)


def test_keys_may_be_those_of_a_dataclass():
    def build(**spec):
        return registry.build("test", {"name": "open", **spec}, "config.x").rest

    assert build(width=3, depth=2, rate=1) == Rest(depth=2, rate=1.0)
    with pytest.raises(BadInput, match="did you mean 'depth'"):
        build(width=3, dept=2)
    with pytest.raises(BadInput, match="missing 'depth'"):
        build(width=3)
    with pytest.raises(BadInput, match="config.x.depth='2': expected int"):
        build(width=3, depth="2")


def test_an_int_serves_as_float():
    rate = build(width=3, rate=1)[1]
    assert rate == 1.0 and type(rate) is float


@pytest.mark.parametrize(
    "spec, message",
    [
        (dict(widht=3), "unknown key 'widht'; did you mean 'width'"),
        (dict(), "missing 'width'"),
        (dict(width="3"), r"config\.x\.width='3': expected int, got str"),
        (dict(width=True), "expected int, got bool"),
        (dict(width=3.0), "expected int, got float"),
        (dict(width=3, kind="c"), r"expected one of \['a', 'b'\]"),
        (dict(width=3, name_or_none=1), "expected str, got int"),
        (dict(width=3, sizes=(1, "2")), r"sizes\[1\]='2': expected int"),
        (dict(width=3, group=4), "expected Mapping, got int"),
        (dict(width=3, given=4), "unknown key 'given'"),
        (dict(width=13), r"config\.x: width=13 is unlucky"),
    ],
)
def test_bad_specs_are_refused_with_their_place(spec, message):
    with pytest.raises(BadInput, match=message):
        build(**spec)


def test_an_unknown_name_lists_what_there_is():
    message = r"no test 'thign'; did you mean 'thing'\? \(have \['limited', 'open', 'thing'"
    with pytest.raises(BadInput, match=message):
        registry.build("test", {"name": "thign"}, "config.x")


def test_a_spec_without_a_name_is_refused():
    with pytest.raises(BadInput, match="has no 'name'"):
        registry.build("test", {"width": 3}, "config.x")


def test_two_constructors_cannot_share_a_name():
    with pytest.raises(ValueError, match="two tests are called 'thing'"):
        registry.register("test", "thing")(lambda: None)


def test_a_part_is_named_with_what_it_is_a_part_of():
    @registry.register("test", "whole")
    def whole(*, part: Mapping):
        return registry.build("test", part, "part")

    with pytest.raises(BadInput, match="^config.whole.part: unknown key 'widht'"):
        registry.build(
            "test", {"name": "whole", "part": {"name": "thing", "widht": 1}}, "config.whole"
        )


def test_recording_collects_given_values_and_defaults():
    with registry.recording() as values:
        build(width=3)
    build(width=4)
    assert values["config.x.width"] == 3 and values["config.x.rate"] == 0.5
    assert "config.x.given" not in values


def test_recording_within_another_collects_for_both():
    with registry.recording() as outer:
        with registry.recording() as inner:
            build(width=3)
        assert outer == inner
        build(width=4)
    assert inner["config.x.width"] == 3 and outer["config.x.width"] == 4
