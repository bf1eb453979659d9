"""What samples cost: multiply-accumulates that ran, parameters, bytes, seconds, peak memory.

Counts and bytes are exact and belong in tests; seconds and peak memory belong to the
machine they were taken on.
"""

import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, flop_registry, sdpa_flop_count

from methods.measure.statistics import Interval, median_interval

Number = int | float
aten = torch.ops.aten
WARM_UP = 2


def _mm(a: Any, b: Any, *rest: Any, **options: Any) -> int:
    return 2 * a[0] * a[1] * b[1]


def _mv(matrix: Any, vector: Any, *rest: Any, **options: Any) -> int:
    return 2 * math.prod(matrix)


def _addmv(total: Any, matrix: Any, vector: Any, *rest: Any, **options: Any) -> int:
    return 2 * math.prod(matrix)


def _attention(query: Any, key: Any, value: Any, *rest: Any, **options: Any) -> int:
    return sdpa_flop_count(query, key, value)


FORMULAS: dict[Any, Callable[..., int]] = {  # of shapes; what torch's registry lacks and a CPU run meets
    aten._int_mm: _mm,
    aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    aten.mv: _mv,
    aten.dot: _mv,
    aten.addmv: _addmv,
}
# Words in an operator's name that mean it multiplies and accumulates. An operator named so, or from outside
# aten, and without a formula is reported. Packed kernels (quantized.linear_dynamic ...) hide their shapes:
# they can only be reported.
MULTIPLIES = (
    {"mm", "addmm", "bmm", "baddbmm", "addbmm", "mv", "addmv", "dot", "vdot", "ger", "outer", "addr", "fft"}
    | {"matmul", "einsum", "linear", "bilinear", "attention", "lstm", "gru", "rnn", "cdist"}
)  # fmt: skip
OWN_NAMESPACES = {"aten", "prim", "prims", "profiler"}


class _Executed(TorchDispatchMode):
    """Collects every operator that reaches a kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.operators: set[Any] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operators.add(func)
        return func(*args, **(kwargs or {}))


def macs(function: Callable[[], object]) -> tuple[int, list[str]]:
    """Multiply-accumulates that ran during `function()`, and the names of operators not counted.

    Operators that do arithmetic without a formula are listed instead of counted as zero. Elementwise work,
    normalisation and softmax are not multiply-accumulates and are left out. Compiled code bypasses the
    counter: count before compiling.
    """
    executed = _Executed()
    with executed, FlopCounterMode(display=False, custom_mapping=FORMULAS) as counter:
        function()
    uncounted = {_packet(op) for op in executed.operators if _multiplies(op) and not _has_formula(op)}
    return counter.get_total_flops() // 2, sorted(uncounted)


def _packet(operator: Any) -> str:
    return str(operator.overloadpacket)


def _has_formula(operator: Any) -> bool:
    return operator.overloadpacket in FORMULAS or operator.overloadpacket in flop_registry


def _multiplies(operator: Any) -> bool:
    namespace, _, name = _packet(operator).partition(".")
    words = name.split("_")
    return namespace not in OWN_NAMESPACES or any(word in MULTIPLIES or word.startswith("conv") for word in words)


def parameters(module: nn.Module) -> int:
    """Logical number of parameters, shared ones once; a quantized weight counts the numbers it stands for."""
    return sum(math.prod(parameter.shape) for parameter in module.parameters())


def active_parameters(network: nn.Module, function: Callable[[], object]) -> float:
    """Parameters that one evaluation of `network` touches, averaged over the evaluations during `function()`.

    Less than all where an evaluation skips parts: caches, early exits, experts. A module counts when it is called.
    """
    evaluations: list[dict[int, int]] = []

    def entered(module: nn.Module, _: Any) -> None:
        evaluations[-1].update({id(own): math.prod(own.shape) for own in module.parameters(recurse=False)})

    handles = [network.register_forward_pre_hook(lambda *_: evaluations.append({}))]
    handles += [module.register_forward_pre_hook(entered) for module in network.modules()]
    try:
        function()
    finally:
        for handle in handles:
            handle.remove()
    return sum(sum(touched.values()) for touched in evaluations) / len(evaluations)


def nbytes(module: nn.Module) -> int:
    """Bytes that the state dict occupies: quantized tensors by their parts, shared tensors once."""
    tensors = [leaf for leaf in tree_leaves(dict(module.state_dict())) if isinstance(leaf, Tensor)]
    plain = {id_: part for tensor in tensors for id_, part in _plain(tensor)}
    return sum(part.numel() * part.element_size() for part in plain.values())


def _plain(tensor: Any) -> list[tuple[tuple[Any, ...], Tensor]]:
    """The ordinary tensors inside a tensor subclass, each with what tells shared memory apart."""
    if hasattr(tensor, "__tensor_flatten__"):
        names, _ = tensor.__tensor_flatten__()
        return [part for name in names for part in _plain(getattr(tensor, name))]
    return [((tensor.data_ptr(), tensor.numel(), tensor.dtype, tensor.device), tensor)]


def file_bytes(path: Path) -> int:
    """Bytes of a file, or of all files below a folder."""
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def _seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def latency(function: Callable[[], object], rounds: int) -> Interval:
    """Median seconds of one call after warm-up; six rounds at least."""
    for _ in range(WARM_UP):
        function()
    return median_interval([_seconds(function) for _ in range(rounds)])


@dataclass(frozen=True)
class Comparison:
    """Seconds of two calls and their ratio a / b, each a median (in `mean`) with its interval."""

    a: Interval
    b: Interval
    ratio: Interval


def interleaved(a: Callable[[], object], b: Callable[[], object], rounds: int) -> Comparison:
    """Two calls timed A B A B after warm-up, so that drift cancels in the ratio; six rounds at least."""
    for _ in range(WARM_UP):
        a()
        b()
    pairs = [(_seconds(a), _seconds(b)) for _ in range(rounds)]
    return Comparison(
        median_interval([first for first, _ in pairs]),
        median_interval([second for _, second in pairs]),
        median_interval([first / second for first, second in pairs]),
    )


def break_even(
    one_off: Number, per_sample: Number, control_one_off: Number, control_per_sample: Number
) -> float | None:
    """Samples after which a technique has paid back what it cost beforehand, all in one unit (MACs, seconds).

    0 if it costs no more beforehand and no more per sample; None if a sample costs no less, so that it never pays.
    """
    extra, saved = one_off - control_one_off, control_per_sample - per_sample
    if extra <= 0 and saved >= 0:
        return 0.0
    return extra / saved if extra > 0 and saved > 0 else None


# A process inherits its parent's peak when it starts (Linux keeps the larger across exec), so a small
# interpreter stands between: the peak it reads is never below its own ten megabytes, and never the caller's.
_LAUNCHER = """
import os, subprocess, sys
child = subprocess.Popen(sys.argv[1:], stdout=sys.stderr)
_, status, usage = os.wait4(child.pid, 0)
print(usage.ru_maxrss)
sys.exit(os.waitstatus_to_exitcode(status))
"""


def peak_memory(command: Sequence[str]) -> int:
    """Peak resident bytes of a command in a fresh process; its output goes to standard error.

    Raises CalledProcessError when the command fails.
    """
    launcher = [sys.executable, "-I", "-S", "-c", _LAUNCHER, *command]
    answer = subprocess.run(launcher, stdout=subprocess.PIPE, text=True, check=True, env=os.environ)
    unit = 1 if sys.platform == "darwin" else 1024
    return int(answer.stdout) * unit
