"""Sweep files, what they mean, and what is refused of them."""

from pathlib import Path

import pytest

from launch.arms import as_text, make_sweep, read_sweep, with_argument
from mm.config import BadInput, load, override

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = sorted(
    path for path in (ROOT / "configs/ablations").glob("*.py") if "get_sweep" in path.read_text()
)
GIVEN = dict(
    config="configs/menu.py",
    axes=dict(grid={"model.width": [1, 2]}),
    metric="score",
    budget=dict(examples=100),
)


def sweep(**changes):
    return make_sweep("a_sweep", GIVEN | changes)


def arms(**axes):
    return {arm.name: (arm.config, arm.overrides) for arm in sweep(axes=axes).arms}


def test_a_grid_is_all_combinations():
    found = arms(grid={"model.width": [1, 2], "a.depth": [3, 4]})
    assert list(found) == [
        "width=1,depth=3",
        "width=1,depth=4",
        "width=2,depth=3",
        "width=2,depth=4",
    ]
    assert found["width=2,depth=3"] == ("configs/menu.py", {"model.width": 2, "a.depth": 3})


def test_a_zip_takes_the_values_of_one_place_together():
    found = arms(zip={"a.width": [1, 2], "a.depth": [3, 4]})
    assert {name: changes for name, (_, changes) in found.items()} == {
        "width=1,depth=3": {"a.width": 1, "a.depth": 3},
        "width=2,depth=4": {"a.width": 2, "a.depth": 4},
    }


def test_a_list_names_its_arms():
    found = arms(list={"plain": {}, "wide": {"a.width": 9, "a.group": {"x": (1, 2)}}})
    assert found["plain"] == ("configs/menu.py", {})
    assert found["wide"][1] == {"a.width": 9, "a.group": {"x": (1, 2)}}


def test_several_axes_are_combined():
    assert list(arms(list={"a": {}, "b": {"x": 1}}, grid={"y": [1, 2]})) == [
        "a,y=1", "a,y=2", "b,y=1", "b,y=2",
    ]  # fmt: skip


def test_an_argument_of_the_recipe_is_set_in_its_path():
    assert arms(grid={":fusion": ["sum", "cross"]})["fusion=cross"] == (
        "configs/menu.py:fusion=cross",
        {},
    )
    assert with_argument("c.py:a=1,b=2", "a", "x+y") == "c.py:b=2,a=x+y"


def test_overrides_of_all_arms_give_way_to_those_of_one():
    found = sweep(overrides={"a": 1, "b": 1}, axes=dict(list={"x": {"a": 2}, "y": {}})).arms
    assert [arm.overrides for arm in found] == [{"a": 2, "b": 1}, {"a": 1, "b": 1}]


def test_a_slash_in_a_value_makes_no_folder():
    assert list(arms(grid={":variant": ["B/16", "L/14"]})) == ["variant=B-16", "variant=L-14"]


def test_the_base_is_the_first_unless_it_is_said():
    assert sweep().base_name == "width=1" and sweep(base="width=2").base_name == "width=2"


def test_a_number_of_seeds_or_the_seeds():
    assert sweep(seeds=2).seed_list == [0, 1] and sweep(seeds=[7, 3]).seed_list == [7, 3]


@pytest.mark.parametrize(
    "changes, said",
    [
        (dict(metrik="a"), "key 'metrik': expected one of .*; did you mean 'metric'"),
        (dict(metric=3), "metric=3: expected a key of results.json"),
        (dict(seeds=0), r"seeds=0: expected a number of at least 1"),
        (dict(seeds=True), "seeds=True"),
        (dict(seeds=[1, 1]), "each once"),
        (dict(seeds=[1.5]), "whole numbers"),
        (dict(better="more"), "better 'more': expected one of"),
        (dict(budget=dict(example=1)), "budget 'example': .*; did you mean 'examples'"),
        (dict(budget=dict(examples=1, flops=1)), "expected one of"),
        (dict(budget=dict(examples=-1)), "expected a number above 0"),
        (dict(budget=dict(examples="many")), "expected a number above 0"),
        (dict(base="width=3"), "base 'width=3': expected one of .*; did you mean 'width=2'"),
        (dict(axes=dict(gird={})), "axes 'gird': .*; did you mean 'grid'"),
        (dict(axes=dict(grid={})), "not empty"),
        (dict(axes=dict(grid={"a": 3})), "axes.grid.a=3: expected a list"),
        (dict(axes=dict(grid={"a": [1]})), "1 arm; a comparison takes 2"),
        (dict(axes=dict(grid={"a": [1, 1]})), "two arms are called 'a=1'"),
        (dict(axes=dict(grid={"a": [{}, {}]})), "a group has no name"),
        (dict(axes=dict(zip={"a": [1, 2], "b": [1]})), "differ in length"),
        (dict(axes=dict(list={"a": 1, "b": 2})), "axes.list.a=1: expected a dict"),
        (dict(axes=dict(list={"..": {}, "b": {}})), "no name of a folder"),
        (dict(axes=dict(grid={"seed": [1, 2]})), "sets seed: seeds does"),
        (dict(overrides={"total_steps": 5}), "sets total_steps: budget does"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_one_line(changes, said):
    with pytest.raises(BadInput, match=said) as error:
        sweep(**changes)
    assert "\n" not in str(error.value)


def test_a_missing_key_says_what_it_is():
    with pytest.raises(BadInput, match="metric is missing: expected a key of results.json"):
        make_sweep("a", {key: value for key, value in GIVEN.items() if key != "metric"})


def test_a_config_is_no_sweep_and_says_how_it_is_run():
    with pytest.raises(BadInput, match="it is a config: main.py --config="):
        read_sweep(str(ROOT / "configs/ablations/quickstart.py"))


def test_a_name_of_no_file_gets_the_nearest():
    with pytest.raises(BadInput, match="did you mean .*fusion.py"):
        read_sweep(str(ROOT / "configs/ablations/fusoin.py"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_sweep_of_the_repository_sets_keys_that_are_there(path):
    for arm in read_sweep(str(path)).arms:
        config = load(str(ROOT / arm.config))
        override(config, [(key, as_text(value)) for key, value in arm.overrides.items()])


def test_the_ablations_that_the_docs_name_are_there():
    assert {path.stem for path in SHIPPED} == {
        "batch_size", "data_amount", "fusion", "loss", "masking", "mixture", "patch_size",
        "text_tower", "finetuning", "finetuning_rates", "classification", "classification_rates",
        "instruction", "averages",
    }  # fmt: skip
