"""Reading compiled text: written here by hand, in the way that libtpu writes it."""

import pytest

from mm.planning import hlo
from mm.planning.topology import CHIPS

V5E = CHIPS["v5e"]
TEXT = """HloModule jit_train_step, is_scheduled=true

%fused (p.0: bf16[8,64], p.1: bf16[64,32]) -> bf16[8,32] {
  %p.0 = bf16[8,64]{1,0:T(8,128)(2,1)} parameter(0)
  %p.1 = bf16[64,32]{1,0:T(8,128)(2,1)} parameter(1)
  ROOT %convolution.1 = bf16[8,32]{1,0:T(8,128)(2,1)} convolution(%p.0, %p.1), dim_labels=bf_io->bf
}

%batched (p.2: bf16[12,8,64], p.3: bf16[12,8,64]) -> bf16[12,8,8] {
  %p.2 = bf16[12,8,64]{2,1,0} parameter(0)
  %p.3 = bf16[12,8,64]{2,1,0} parameter(1)
  ROOT %convolution.2 = bf16[12,8,8]{2,1,0} convolution(%p.2, %p.3), window={size=12 stride=11 pad=0_0 lhs_dilate=12}, dim_labels=0bf_0oi->0bf
}

%body (carry: (s32[], bf16[8,64], /*index=2*/bf16[64,32])) -> (s32[], bf16[8,64], bf16[64,32]) {
  %carry = (s32[]{:T(128)}, bf16[8,64]{1,0:T(8,128)(2,1)S(1)}, /*index=2*/bf16[64,32]{1,0}) parameter(0)
  %a = bf16[8,64]{1,0} get-tuple-element(%carry), index=1
  %b = bf16[64,32]{1,0} get-tuple-element(%carry), index=2
  %fusion.1 = bf16[8,32]{1,0} fusion(%a, %b), kind=kOutput, calls=%fused, metadata={op_name="jit(f)/while/body/dot_general"}, backend_config={"window_config":{"estimated_cycles":"1500"}}
  %gather.1 = (bf16[2,64]{1,0}, bf16[8,64]{1,0}) all-gather-start(%slice), replica_groups=[1,4]<=[4], dimensions={0}
  %gathered = bf16[8,64]{1,0} all-gather-done(%gather.1)
  ROOT %tuple.1 = (s32[], bf16[8,64]{1,0}, bf16[64,32]{1,0}) tuple(%i, %gathered, %b)
}

%condition (carry.1: (s32[], bf16[8,64], bf16[64,32])) -> pred[] {
  %limit = s32[]{:T(128)} constant(12), backend_config={"flag_configs":[]}
  %carry.1 = (s32[], bf16[8,64]{1,0}, bf16[64,32]{1,0}) parameter(0)
  %i.1 = s32[] get-tuple-element(%carry.1), index=0
  ROOT %less = pred[] compare(%i.1, %limit), direction=LT
}

%sum (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %add = f32[] add(%x, %y)
}

ENTRY %main (q: bf16[8,64], w: bf16[64,32], g: f32[100], h: f32[12,8,64]) -> f32[100] {
  %q = bf16[8,64]{1,0} parameter(0)
  %while.1 = (s32[]{:T(128)}, bf16[8,64]{1,0}, bf16[64,32]{1,0}) while(%start), condition=%condition, body=%body
  %kernel.1 = bf16[8,64]{1,0} custom-call(%q), custom_call_target="tpu_custom_call", metadata={op_name="jit(f)/short_attention"}, backend_config={"custom_call_config":{"cost_estimate":{"flops":"197000000000","transcendentals":"1","bytes_accessed":"1000"}}}
  %fusion.2 = bf16[12,8,8]{2,1,0} fusion(%h, %h), kind=kOutput, calls=%batched, metadata={op_name="jit(f)/scores"}, backend_config={"window_config":{"estimated_cycles":"3000"}}
  %all-reduce.1 = (f32[100]{0}, f32[50]{0}) all-reduce(%g, %k), replica_groups={{0,1},{2,3}}, to_apply=%sum
  %scatter.1 = f32[25]{0} reduce-scatter(%g), replica_groups={{0,1,2,3}}, dimensions={0}, to_apply=%sum
  %permute.1 = (f32[30]{0}, f32[30]{0}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%z), source_target_pairs={{0,1},{1,0}}
  ROOT %result = f32[100]{0} get-tuple-element(%all-reduce.1), index=0
}
"""  # noqa: E501


def test_time_is_cycles_times_turns_over_the_clock():
    operations = {operation.name: operation for operation in hlo.operations(hlo.parse(TEXT), V5E)}
    assert set(operations) == {"fusion.1", "fusion.2", "kernel.1"}
    assert operations["fusion.1"].times == 12
    assert operations["fusion.1"].seconds == pytest.approx(12 * 1500 / 1.5e9)
    assert operations["fusion.1"].source == "jit(f)/while/body/dot_general"


def test_a_computation_that_is_called_twice_takes_twice_the_time():
    again = "  %call.1 = (s32[], bf16[8,64], bf16[64,32]) call(%start), to_apply=%body\n"
    twice = TEXT.replace("  %kernel.1", again + "  %kernel.1")
    [fusion] = [o for o in hlo.operations(hlo.parse(twice), V5E) if o.name == "fusion.1"]
    assert fusion.times == 13 and fusion.seconds == pytest.approx(13 * 1500 / 1.5e9)


@pytest.mark.parametrize(
    "branches",
    [
        "branch_computations={%idle, %body, %sum}",
        "true_computation=%body, false_computation=%idle",
    ],
)
def test_of_a_conditional_the_branch_that_takes_longest_counts(branches):
    """Both inside of it: a loop's body, and what sends as much but takes less time."""
    body = TEXT[TEXT.index("%body (") : TEXT.index("%condition (")]
    idle = body.replace("%body (", "%idle (").replace('"1500"', '"1400"').replace(".1 =", ".8 =")
    either = f"  %either = (s32[]) conditional(%p, %start, %start), {branches}\n"
    module = hlo.parse(idle + TEXT.replace("  %kernel.1", either + "  %kernel.1"))
    found = {operation.name: operation for operation in hlo.operations(module, V5E)}
    assert found["fusion.1"].times == 13 and "fusion.8" not in found
    assert hlo.collectives(module)["all-gather"]["count"] == 13


def test_the_costliest_operation_is_first():
    seconds = [operation.seconds for operation in hlo.operations(hlo.parse(TEXT), V5E)]
    assert seconds == sorted(seconds, reverse=True)


def test_a_kernel_takes_half_of_the_peak_or_most_of_the_bandwidth():
    [kernel] = [operation for operation in hlo.operations(hlo.parse(TEXT), V5E) if operation.kernel]
    assert kernel.seconds == pytest.approx(2e-3)  # 197 GFLOP at half of 197 TFLOP/s
    many = TEXT.replace('"bytes_accessed":"1000"', '"bytes_accessed":"819000000000"')
    [kernel] = [operation for operation in hlo.operations(hlo.parse(many), V5E) if operation.kernel]
    assert kernel.seconds == pytest.approx(1 / 0.7)


def test_a_kernel_without_a_stated_cost_is_refused():
    with pytest.raises(ValueError, match="kernel.1 states no cost"):
        hlo.operations(hlo.parse(TEXT.replace("flops", "x").replace("bytes_accessed", "y")), V5E)


def test_a_kernel_that_states_no_cost_takes_what_was_counted_in_its_jaxpr():
    silent = TEXT.replace('"flops":"197000000000",', "").replace(',"bytes_accessed":"1000"', "")
    module = hlo.parse(silent, {("kernel", ((8, 64),)): (197e9, 1.0), ("kernel", ((8,),)): (1, 1)})
    [kernel] = [operation for operation in hlo.operations(module, V5E) if operation.kernel]
    assert kernel.seconds == pytest.approx(2e-3) and hlo.kernel_flops(module) == 197e9


def test_a_text_without_estimates_is_refused():
    with pytest.raises(ValueError, match="no estimated_cycles"):
        hlo.operations(
            hlo.parse(TEXT.replace("estimated_cycles", "x").replace("tpu_custom", "x")), V5E
        )


def test_a_loop_that_does_not_say_its_turns_is_refused():
    with pytest.raises(ValueError, match="while.1: its condition condition has the constants"):
        hlo.operations(hlo.parse(TEXT.replace("constant(12)", "parameter(7)")), V5E)


def test_matmuls_are_counted_with_their_turns_and_without_padding():
    loop, batched = 12 * 2 * 8 * 64 * 32, 12 * 2 * 8 * 8 * 64
    assert hlo.matmul_flops(hlo.parse(TEXT)) == loop + batched
    assert hlo.kernel_flops(hlo.parse(TEXT)) == 197e9


def test_collectives_are_what_a_chip_sends_times_turns():
    assert hlo.collectives(hlo.parse(TEXT)) == {
        "all-gather": {"count": 12, "bytes": 12 * 8 * 64 * 2},
        "all-reduce": {"count": 1, "bytes": 2 * 150 * 4},
        "collective-permute": {"count": 1, "bytes": 30 * 4},
        "reduce-scatter": {"count": 1, "bytes": 4 * 25 * 4},
    }


ASYNC = """
%fused_start (p.4: bf16[2,64]) -> bf16[8,64] {
  ROOT %g.1 = bf16[8,64]{1,0} all-gather(%p.4), replica_groups={{0,1,2,3}}, dimensions={0}
}

%async_collective_fusion.1 (p.5: bf16[2,64]) -> bf16[8,64] {
  ROOT %g.2 = bf16[8,64]{1,0} all-gather(%p.5), replica_groups={{0,1,2,3}}, dimensions={0}
}

%fused_done (p.6: bf16[2,64]) -> bf16[8,64] {
  ROOT %g.3 = bf16[8,64]{1,0} all-gather(%p.6), replica_groups={{0,1,2,3}}, dimensions={0}
}

%all-reduce-scatter.1 (p.7: f32[64,32]) -> f32[16,32] {
  %r.1 = f32[64,32]{1,0} all-reduce(%p.7), replica_groups={{0,1,2,3}}
  ROOT %mine = f32[16,32]{1,0} dynamic-slice(%r.1, %i.2, %zero), dynamic_slice_sizes={16,32}
}

ENTRY %main (q: bf16[2,64]) -> f32[16,32] {
  %async-collective-start.1 = bf16[8,64]{1,0} fusion(%q), kind=kCustom, calls=%fused_start
  %fusion.3 = bf16[8,64]{1,0} fusion(%q), kind=kOutput, calls=%async_collective_fusion.1
  %async-collective-done.1 = bf16[8,64]{1,0} fusion(%q), kind=kCustom, calls=%fused_done
  %scatter.2 = f32[4]{0} reduce-scatter(%g), replica_groups=mesh['a'=2,'b'=8] {'b'}, dimensions={0}
  ROOT %fusion.4 = f32[16,32]{1,0} fusion(%q), kind=kCustom, calls=%all-reduce-scatter.1
}
"""


def test_a_collective_that_runs_beside_matmuls_is_counted_once():
    assert hlo.collectives(hlo.parse(ASYNC))["all-gather"] == {"count": 1, "bytes": 8 * 64 * 2}


def test_an_all_reduce_that_is_started_has_the_type_of_its_result():
    line = "  %r.9 = (f32[100]{0}, f32[50]{0}) all-reduce-start(%g, %k), replica_groups={{0,1}}\n"
    text = ASYNC.replace("  %scatter.2", line + "  %scatter.2")
    assert hlo.collectives(hlo.parse(text))["all-reduce"] == {"count": 1, "bytes": 2 * 150 * 4}


def test_groups_that_are_not_named_are_refused():
    with pytest.raises(ValueError, match="no groups of devices"):
        hlo.collectives(hlo.parse(ASYNC.replace("mesh['a'=2,'b'=8] {'b'}", "{}")))


def test_an_all_reduce_of_which_a_chip_keeps_its_part_is_a_reduce_scatter():
    found = hlo.collectives(hlo.parse(ASYNC))
    assert "all-reduce" not in found
    assert found["reduce-scatter"] == {"count": 2, "bytes": 64 * 32 * 4 + 8 * 4 * 4}
