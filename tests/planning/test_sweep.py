"""Sweeps with a planner made up here; tests/test_plan.py runs one with the compiler."""

import pytest

from mm.config import BadInput
from mm.planning import sweep
from tests.tiny import get_config

GIB = 2**30


def planned(config):
    """More is faster, recompute slower; of 32 examples only "full" fits. The own mesh is dp."""
    size = config.global_batch_size
    if config.sharding.rules == "fsdp_tp":
        raise BadInput("heads do not divide")
    cost = {"full": 1, "hidden": 2, "cheap": 3, "none": 4}[config.model.image.remat]
    assert config.model.text.remat == config.model.image.remat
    found = {"fits": size * cost <= 32, "bytes_per_chip": size * cost * GIB}
    if found["fits"]:
        speed = size + cost + (config.sharding.rules == "dp")
        found |= dict(estimated_step_seconds=1 / speed, estimated_mfu=0.4,
                      estimated_examples_per_second_per_chip=speed)  # fmt: skip
    return found


def run(vary, saved=None):
    config = get_config()
    return sweep.sweep(config, 8, 1, vary, planned, saved or (lambda plans: None))


def test_all_combinations_are_planned_and_the_best_is_first(capsys):
    saved = []
    plans = run(sweep.VARIED, lambda plans: saved.append(len(plans)))
    speeds = [plan.get("estimated_examples_per_second_per_chip", 0) for plan in plans]
    assert speeds == sorted(speeds, reverse=True) and speeds[0] == 32 + 1 + 1
    assert plans[0]["variant"] == {"batch": 32, "remat": "full", "mesh": "own"}
    assert saved == list(range(1, len(plans) + 1))
    seen = {tuple(plan["variant"].values()) for plan in plans}
    assert len(seen) == len(plans)
    assert {mesh for _, _, mesh in seen} == {"own", "fsdp", "fsdp_tp"}
    assert "34" in sweep.show(plans).splitlines()[1]


def test_meshes_go_over_slices_and_stay_apart():
    found = sweep.meshes(get_config(), 96, 2)
    assert found["fsdp"] == (dict(replica=2, fsdp=-1, tensor=1), "fsdp")
    assert found["hsdp"] == (dict(replica=-1, fsdp=16, tensor=1), "hsdp")
    assert "hsdp" not in sweep.meshes(get_config(), 8, 1)


def test_a_variant_sees_as_many_examples_and_may_replace_mappings():
    config = get_config()
    config.total_steps, config.global_batch_size = 100, 16
    with config.unlocked(), config.ignore_type():
        config.sharding.rules = dict(parameters={"embed": "fsdp"})
        config.model.image.remat = dict(save=[], recompute=["query"])
    changed = sweep.apply(config, 8, 1, sweep.Variant(32, "full", "fsdp"))
    assert (changed.total_steps, changed.global_batch_size) == (50, 32)
    assert changed.sharding.rules == "fsdp" and changed.model.image.remat == "full"
    assert config.global_batch_size == 16


def test_a_larger_batch_than_one_that_does_not_fit_is_not_tried():
    tried = [tuple(plan["variant"].values()) for plan in run(("batch", "remat"))]
    assert (16, "hidden", "own") in tried and (32, "hidden", "own") in tried
    assert (16, "none", "own") in tried and (32, "none", "own") not in tried


def test_what_is_not_varied_stays():
    assert [plan["variant"] for plan in run(("remat",))] and {
        (plan["variant"]["batch"], plan["variant"]["mesh"]) for plan in run(("remat",))
    } == {(16, "own")}


def test_a_variant_that_a_mesh_cannot_split_says_why():
    [refused] = [plan for plan in run(("remat", "mesh")) if plan["variant"]["remat"] == "full"
                 and plan["variant"]["mesh"] == "fsdp_tp"]  # fmt: skip
    assert sweep.row(refused)[-1] == "refused: heads do not divide"


def test_what_cannot_be_varied_is_refused():
    with pytest.raises(BadInput, match="--sweep=batches: .*did you mean 'batch'"):
        run(("batches",))
