"""What the text of a compiled TPU program says: operations, how often each runs, and their cost.

The compiler notes `estimated_cycles` on what it schedules. A loop turns as often as the constant in
its condition says. A Pallas kernel has no estimate, but FLOPs and bytes: those that its author
stated, or else those that were counted in its jaxpr.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from mm.planning.topology import Chip

_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^  (?:ROOT )?%?([\w.\-]+) = (.*)$")
_ARRAY = re.compile(r"\b(pred|[a-z]+\d+\w*)\[([\d,]*)\]")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition)=%?([\w.\-]+)")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_KERNEL = 'custom_call_target="tpu_custom_call"'
_BYTES = {"pred": 1}
# Of a kernel that has no estimate: what share of the chip's peaks it is taken to reach at best.
KERNEL_FLOPS, KERNEL_BANDWIDTH = 0.5, 0.7
COLLECTIVES = (
    "all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute",
)  # fmt: skip


class Instruction(NamedTuple):
    """`result` is the type as written, `text` what follows it: operands and attributes."""

    name: str
    result: str
    opcode: str
    text: str


class Operation(NamedTuple):
    """One line of the compiled text. times: how often a step runs it. seconds: all of them."""

    name: str
    source: str
    times: int
    seconds: float
    kernel: bool


class Module(NamedTuple):
    """The instructions of each computation, by its name, and the name of the entry.

    kernels: (FLOPs, bytes) of those that may state none, as `flops.kernel_costs` finds them.
    """

    computations: dict[str, list[Instruction]]
    entry: str
    kernels: Mapping[tuple, tuple[float, float]]


def parse(text: str, kernels: Mapping[tuple, tuple[float, float]] | None = None) -> Module:
    """Reads the compiled text."""
    computations: dict[str, list[Instruction]] = {}
    entry, current = "", None
    for line in text.splitlines():
        if line == "}":
            current = None
        elif current is not None and (match := _INSTRUCTION.match(line)):
            current.append(_instruction(match))
        elif match := _COMPUTATION.match(line):
            current = computations[match[1]] = []
            entry = match[1] if line.startswith("ENTRY") else entry
    return Module(computations, entry, kernels or {})


def executions(module: Module, entry: str | None = None) -> Iterator[tuple[Instruction, str, int]]:
    """(instruction, its computation, how often a step runs it), those inside of fusions included.

    Of a conditional the branch that takes longest, as `count_flops`. Begins at `entry`, by default
    that of the module. Raises ValueError for a loop whose number of turns the text does not say.
    """
    stack = [(entry or module.entry, 1)]
    while stack:
        name, times = stack.pop()
        for instruction in module.computations[name]:
            yield instruction, name, times
            turns = trip_count(instruction, module) if instruction.opcode == "while" else 1
            called = _CALLED.findall(instruction.text)
            if branches := _branches(instruction):
                called.append(max(branches, key=lambda name: _cycles(module, name)))
            stack += [(inner, times * turns) for inner in called]


def _branches(instruction: Instruction) -> list[str]:
    """The computations of which a conditional runs one."""
    if instruction.opcode != "conditional":
        return []
    listed = re.findall(r"branch_computations=\{([^}]*)\}", instruction.text)
    pair = re.findall(r"(?:true|false)_computation=%?([\w.\-]+)", instruction.text)
    return pair + [name.strip(" %") for names in listed for name in names.split(",")]


def _cycles(module: Module, entry: str) -> int:
    """The compiler's estimate of a computation, kernels apart."""
    return sum(
        times * int(match[1])
        for instruction, _, times in executions(module, entry)
        if (match := _CYCLES.search(instruction.text))
    )


def trip_count(loop: Instruction, module: Module) -> int:
    """Turns of a `while`: the constant that its condition compares with."""
    name = re.search(r"condition=%?([\w.\-]+)", loop.text)[1]
    constants = [
        int(match[1])
        for instruction in module.computations[name]
        if instruction.opcode == "constant" and (match := re.match(r"\((\d+)\)", instruction.text))
    ]
    if len(constants) != 1:
        raise ValueError(f"{loop.name}: its condition {name} has the constants {constants}")
    return constants[0]


def operations(module: Module, chip: Chip) -> list[Operation]:
    """Everything that takes time, the costliest first.

    Raises ValueError when the text has no estimates at all.
    """
    inside = {  # fusions count as a whole
        name
        for body in module.computations.values()
        for instruction in body
        if instruction.opcode not in ("while", "conditional", "call", "async-start")
        for name in _CALLED.findall(instruction.text)
    }
    found: dict[tuple[str, str], Operation] = {}
    for instruction, computation, times in executions(module):
        seconds, kernel = _seconds(instruction, module, chip)
        if computation in inside or not seconds:
            continue
        key = computation, instruction.name
        if key in found:  # its computation is called from several places
            times += found[key].times
        source = re.search(r'op_name="([^"]*)"', instruction.text)
        found[key] = Operation(
            instruction.name, source[1] if source else "", times, seconds * times, kernel
        )
    if not found:
        raise ValueError("the compiled text holds no estimated_cycles")
    return sorted(found.values(), key=lambda operation: -operation.seconds)


def collectives(module: Module) -> dict[str, dict[str, float]]:
    """Kind -> {"count", "bytes"} of a step and chip.

    Bytes are what a chip sends, in rings of many: the whole array that all-gather makes or
    the others take, and twice that for all-reduce, which is a reduce-scatter and an all-gather.
    """
    count, size = Counter(), Counter()
    goes_on = _later_parts(module)
    for instruction, computation, times in executions(module):
        kind = instruction.opcode.removesuffix("-start")
        if kind not in COLLECTIVES or computation in goes_on:
            continue
        if computation.startswith("all-reduce-scatter"):  # a fusion that keeps the chip's part
            count["reduce-scatter"] += times
            size["reduce-scatter"] += times * sum(array_bytes(instruction.result))
            continue
        arrays = array_bytes(instruction.result)
        if instruction.opcode.endswith("-start") and kind != "all-reduce":
            # (operands, results, two numbers)
            arrays = array_bytes(instruction.result.replace("u32[]", ""))
            half = len(arrays) // 2
            arrays = arrays[half:] if kind == "all-gather" else arrays[:half]
        total = sum(arrays)
        if kind == "reduce-scatter":
            total *= _group_size(instruction.text)
        if kind == "all-reduce":
            total *= 2
        count[kind] += times
        size[kind] += times * total
    return {kind: {"count": count[kind], "bytes": size[kind]} for kind in sorted(count)}


def _later_parts(module: Module) -> set[str]:
    """Computations in which a collective that was started before goes on, beside a matmul."""
    return {
        name
        for body in module.computations.values()
        for instruction in body
        if instruction.opcode == "fusion"
        for name in _CALLED.findall(instruction.text)
        if name.startswith("async_collective_fusion")
        or instruction.name.startswith("async-collective-done")
    }


def matmul_flops(module: Module) -> float:
    """2 x multiplications of all convolutions and dots of a step on a chip; kernels apart.

    On a TPU a matmul is a convolution, and one with batch dimensions has a window over them that
    mostly meets padding, which is not counted.
    """
    shapes = {
        (name, instruction.name): _shape(instruction.result)
        for name, body in module.computations.items()
        for instruction in body
    }
    total = 0.0
    for instruction, computation, times in executions(module):
        if instruction.opcode not in ("convolution", "dot"):
            continue
        operands = re.findall(r"%([\w.\-]+)", instruction.text.split(")")[0])
        left, right = (shapes[computation, operand] for operand in operands[:2])
        out = _shape(instruction.result)
        if instruction.opcode == "dot":
            contract = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.text)[1]
            products = math.prod(out) * math.prod(left[int(i)] for i in contract.split(",") if i)
        else:
            products = _convolution(instruction.text, left, right, out)
        total += 2.0 * times * products
    return total


def kernel_flops(module: Module) -> float:
    """What the kernels of a step state, on a chip."""
    return sum(
        times * _kernel_cost(instruction, module)[0]
        for instruction, _, times in executions(module)
        if _KERNEL in instruction.text
    )


def array_bytes(written: str) -> list[float]:
    """The bytes of each array in a type, as `bf16[8,128]{1,0}` or a tuple of such."""
    return [
        math.prod(int(n) for n in dimensions.split(",") if n) * _width(kind)
        for kind, dimensions in _ARRAY.findall(written)
    ]


def _instruction(match: re.Match) -> Instruction:
    name, rest = match.groups()
    end = _closing(rest) if rest.startswith("(") else rest.index(" ")
    result, rest = rest[:end], rest[end:].lstrip()
    opcode, _, text = rest.partition("(")
    return Instruction(name, result, opcode.strip(), "(" + text)


def _closing(text: str) -> int:
    """Where the parenthesis that `text` begins with is closed."""
    depth = 0
    for i, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if depth == 0:
            return i + 1
    raise ValueError(f"unbalanced parentheses: {text[:80]}")


def _seconds(instruction: Instruction, module: Module, chip: Chip) -> tuple[float, bool]:
    """(the estimate for one execution, whether it is of a kernel)."""
    if _KERNEL in instruction.text:
        flops, size = _kernel_cost(instruction, module)
        compute = flops / (KERNEL_FLOPS * chip.flops)
        memory = size / (KERNEL_BANDWIDTH * chip.bytes_per_second)
        return max(compute, memory), True
    cycles = _CYCLES.search(instruction.text)
    return (int(cycles[1]) / chip.compiler_hertz if cycles else 0.0), False


def _kernel_cost(kernel: Instruction, module: Module) -> tuple[float, float]:
    """(FLOPs, bytes) of one execution."""
    if stated := dict(re.findall(r'"(flops|bytes_accessed)":"(\d+)"', kernel.text)):
        return float(stated.get("flops", 0)), float(stated.get("bytes_accessed", 0))
    shapes = tuple(
        tuple(int(n) for n in dimensions.split(",") if n)
        for _, dimensions in _ARRAY.findall(kernel.result)
    )
    key = kernel.name.partition(".")[0], shapes
    if key not in module.kernels:
        raise ValueError(f"the kernel {kernel.name} states no cost, and none was counted")
    return module.kernels[key]


def _group_size(text: str) -> int:
    """Devices of a group, as `replica_groups={{0,1},{2,3}}` or `[16,16]<=[256]` (groups, size).

    Or as `mesh['x'=2,'y'=8] {'y'}`: axes of a mesh, and over which of them.
    """
    if match := re.search(r"replica_groups=mesh\[(.*?)\] \{(.*?)\}", text):
        sizes = dict(re.findall(r"('\w+')=(\d+)", match[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'\w+'", match[2]))
    if match := re.search(r"replica_groups=\[\d+,(\d+)\]", text):
        return int(match[1])
    if match := re.search(r"replica_groups=\{\{([\d,]+)\}", text):
        return len(match[1].split(","))
    raise ValueError(f"no groups of devices in {text[:200]}")


def _shape(written: str) -> tuple[int, ...]:
    match = _ARRAY.search(written)
    return tuple(int(n) for n in match[2].split(",") if n) if match else ()


def _width(kind: str) -> float:
    return _BYTES[kind] if kind in _BYTES else int(re.search(r"\d+", kind)[0]) / 8


def _convolution(text: str, left: tuple, right: tuple, out: tuple) -> float:
    """Multiplications of a convolution, those with padding left out."""
    lhs, rhs, result = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", text).groups()
    window = dict(re.findall(r"(size|stride|pad|lhs_dilate|rhs_dilate)=([\dx_\-]+)", text))
    spatial = [label for label in lhs if label.isdigit()]

    def numbers(key: str, default: str) -> list[str]:
        return window[key].split("x") if key in window else [default] * len(spatial)

    products = out[result.index("b")] * out[result.index("f")] * right[rhs.index("i")]
    rows = zip(
        sorted(spatial), numbers("size", "1"), numbers("stride", "1"), numbers("pad", "0_0"),
        numbers("lhs_dilate", "1"), numbers("rhs_dilate", "1"), strict=True,
    )  # fmt: skip
    for label, size, stride, pad, spread, dilate in rows:
        inputs, outputs = left[lhs.index(label)], out[result.index(label)]
        low, spread = int(pad.split("_")[0]), int(spread)
        products *= sum(
            place % spread == 0 and 0 <= place // spread < inputs
            for i in range(outputs)
            for k in range(int(size))
            for place in [i * int(stride) + k * int(dilate) - low]
        )
    return products
