"""Every Triton kernel and configuration compiled to machine code for GPUs that aren't here.

Compiled is what a launch would run: the same object (KernelCall) serves both. Shared memory must
fit, nothing may spill, and the half types' products must run on the matrix units.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from crossmedia_fast import triton_support
from crossmedia_fast.ops.conv_act_pool.activation import ACTIVATIONS
from crossmedia_fast.ops.conv_act_pool.arguments import check_conv, check_pool, conv_output_size
from crossmedia_fast.ops.gan_loss.arguments import OPERANDS, Problem
from crossmedia_fast.ops.gan_loss.kernels import launch_for
from crossmedia_fast.triton_launch import KernelCall

pytestmark = [
    pytest.mark.skipif(
        bool(triton_support.why_not_importable()), reason=triton_support.why_not_importable()
    ),
    pytest.mark.skipif(triton_support.interpreting(), reason="the interpreter compiles nothing"),
]

# NVIDIA: what a block may have on every GPU since sm_80 (sm_86, sm_89 and sm_120 have the least,
# CUDA C++ Programming Guide, "Technical Specifications per Compute Capability"); gfx942: its LDS.
SHARED = {"cuda": 99 * 1024, "hip": 64 * 1024}
TARGETS = {
    "sm_80": ("cuda", 80, 32),
    "sm_90": ("cuda", 90, 32),
    "sm_100": ("cuda", 100, 32),
    "gfx942": ("hip", "gfx942", 64),
}
MATRIX = {
    "sm_80": r"\bmma\.sync",
    "sm_90": r"wgmma\.mma_async|\bmma\.sync",
    "sm_100": r"tcgen05\.mma|\bmma\.sync",
    "gfx942": r"v_mfma_f32",
}


class Machine(NamedTuple):
    """What the compiled kernel uses."""

    shared: int
    spilled: int
    matrix: int  # matrix instructions


def compiled(call: KernelCall, name: str, folder: Path) -> Machine:
    from triton.backends.compiler import GPUTarget

    kernel = call.compile(GPUTarget(*TARGETS[name]))
    if "amdgcn" in kernel.asm:
        assembly = kernel.asm["amdgcn"]
        spilled = _number(r"\.vgpr_spill_count:\s*(\d+)", assembly)
    else:
        assembly = kernel.asm["ptx"]
        (folder / "kernel.cubin").write_bytes(kernel.asm["cubin"])
        usage = tool("cuobjdump", "-res-usage", folder / "kernel.cubin")
        spilled = _number(r"LOCAL:(\d+)", usage)
        if _number(r"STACK:(\d+)", usage):  # spilled registers lie there, and calls' frames
            (folder / "kernel.ptx").write_text(assembly)
            architecture = {"sm_80": "sm_80", "sm_90": "sm_90a", "sm_100": "sm_100a"}[name]
            usage = tool(
                "ptxas-blackwell" if name == "sm_100" else "ptxas",
                "-v",
                f"--gpu-name={architecture}",
                f"--output-file={os.devnull}",
                folder / "kernel.ptx",
            )
            spilled += _number(r"(\d+) bytes spill stores", usage)
    return Machine(kernel.metadata.shared, spilled, len(re.findall(MATRIX[name], assembly)))


def tool(program: str, *arguments: str | Path) -> str:
    """What a program of Triton's own wheel says."""
    import triton

    path = Path(triton.__file__).parent / "backends/nvidia/bin" / program
    command = [os.fspath(path), *map(os.fspath, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    assert found, f"no {pattern} in {text[:500]}"
    return int(found[1])


def check(call: KernelCall, name: str, folder: Path, matrix: bool = False) -> None:
    machine = compiled(call, name, folder)
    assert machine.shared <= SHARED[TARGETS[name][0]], machine
    assert machine.spilled == 0, machine
    if matrix:
        assert machine.matrix, f"{call.kernel} for {name} has no matrix instruction"


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def convolution(
    name: str,
    dtype: torch.dtype,
    channels: int = 64,
    filters: int = 64,
    activation: str = "relu",
    pool: str = "max",
    pool_size: int = 2,
    channels_last: bool = True,
    height: int = 56,
    stride: int = 1,
) -> tuple[Any, torch.Tensor, torch.Tensor, torch.Tensor]:
    """A layer of a usual size, and its tensors."""
    from crossmedia_fast.ops.conv_act_pool import triton_conv

    x = meta(32, channels, height, height, dtype=dtype)
    w = meta(filters, channels, 3, 3, dtype=dtype)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    conv = check_conv(stride, 1, 1, 1)
    pooling = check_pool(activation, None, pool, pool_size, None, 0, False, True)
    z_shape = (32, filters, *conv_output_size(x, w, conv))
    kernels = triton_conv.fused(x, w, z_shape, conv, pooling)
    kernels.rows_apart = name != "sm_100"
    return kernels, x, w, meta(filters, dtype=dtype)


def launches(
    kernels: Any, x: torch.Tensor, w: torch.Tensor, bias: torch.Tensor, which: str
) -> Iterator[KernelCall]:
    """The launch of each configuration of one kernel."""
    from crossmedia_fast.ops.conv_act_pool import triton_tiles

    launch = kernels.pool_launch
    y = x.new_empty_strided(launch.y_shape, launch.y_strides)
    index = None
    if launch.index_dtype is not None:
        index = x.new_empty_strided(launch.y_shape, kernels.g_strides, dtype=launch.index_dtype)
    z = y if kernels.saved == "preactivation" else None
    for config in triton_tiles.configs(which, x.dtype):
        if which == "forward":
            yield kernels.forward_call(config, x, w, bias, y, index, z)
        elif which == "input_gradient":
            yield kernels.input_gradient_call(config, y, index, w, torch.empty_like(x))
        else:
            yield kernels.weight_gradient_call(config, y, index, x, meta(64))


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("which", ["forward", "input_gradient", "weight_gradient"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_every_configuration(dtype: torch.dtype, which: str, name: str, tmp_path: Path) -> None:
    for call in launches(*convolution(name, dtype), which):
        check(call, name, tmp_path, matrix=dtype == torch.float16)


# What else changes the code: the reduction with z beside it, the bits of an average, few channels,
# loops over positions, the other format, strided phases, bfloat16, IEEE products.
VARIANTS: dict[str, dict[str, Any]] = {
    "few_channels": {"channels": 3, "height": 224},
    "gelu": {"activation": "gelu"},
    "average": {"pool": "avg"},
    "no_pool_silu": {"pool": "none", "activation": "silu"},
    "pool_3": {"pool_size": 3},
    "nchw_stride_2": {"channels_last": False, "stride": 2},
    "bfloat16": {"dtype": torch.bfloat16},
}
CHANGES_GRADIENTS = ("few_channels", "average", "nchw_stride_2")


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_variants(variant: str, name: str, tmp_path: Path) -> None:
    arguments = {"dtype": torch.float16, **VARIANTS[variant]}
    whole = ("forward", "input_gradient", "weight_gradient")
    for which in whole if variant in CHANGES_GRADIENTS else whole[:1]:
        call = next(launches(*convolution(name, **arguments), which))
        check(call, name, tmp_path, matrix=True)


@pytest.mark.parametrize("name", TARGETS)
def test_ieee_products(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    for which in ("forward", "input_gradient", "weight_gradient"):
        call = next(launches(*convolution(name, torch.float32), which))
        assert call.constants["PRECISION"] == "ieee"
        check(call, name, tmp_path)


@pytest.mark.parametrize("name", TARGETS)
def test_offsets_in_64_bits(name: str, tmp_path: Path) -> None:
    """A convolution of 2^32 elements: the strides and the rows need them."""
    kernels, x, w, bias = convolution(name, torch.float16, height=1448)
    assert x.numel() > 2**31
    for which in ("forward", "input_gradient", "weight_gradient"):
        call = next(launches(kernels, x, w, bias, which))
        assert call.constants["WIDE"]
        check(call, name, tmp_path, matrix=True)


@pytest.mark.parametrize("name", TARGETS)
def test_epilogue(name: str, tmp_path: Path) -> None:
    from crossmedia_fast.ops.conv_act_pool import triton

    for number, activation in enumerate(ACTIVATIONS):
        pool = ("max", "avg", "none")[number % 3]
        pooling = check_pool(activation, None, pool, 2, None, 0, False, True)
        dtype = (torch.float32, torch.float16, torch.float64, torch.bfloat16)[number % 4]
        launch = triton.Launch((8, 64, 32, 32), dtype, number % 2 == 0, pooling)
        x = meta(*launch.x_shape, dtype=dtype)
        y = meta(*launch.y_shape, dtype=dtype)
        bias = meta(64, dtype=dtype)
        index = launch.index_dtype and meta(*launch.y_shape, dtype=launch.index_dtype)
        check(launch.forward_call(x, bias, y, index, y), name, tmp_path)
        differentiated = x if launch.saved == "input" else None
        check(launch.backward_call(y, index, differentiated, bias, x), name, tmp_path)
        saved = y if launch.saved in ("output", "preactivation") else None
        sums = torch.float64 if dtype == torch.float64 else torch.float32
        partial = meta(64, 64, dtype=sums)
        call = launch.pooled_gradient_call(y, saved, index, y, partial, 2048, 32, True, True, True)
        check(call, name, tmp_path)
    check(triton.sum_partials_call(partial, bias, 64, 1, 1, (1, 1, 1)), name, tmp_path)


@pytest.mark.parametrize("name", TARGETS)
def test_losses(name: str, tmp_path: Path) -> None:
    for number, function in enumerate(OPERANDS):
        dtype = (torch.float32, torch.float16, torch.bfloat16, torch.float64)[number % 4]
        operands = [meta(5000, dtype=dtype) for _ in range(2 * OPERANDS[function])]
        launch = launch_for("triton", Problem(function, (0.9, 0.1), (1.0, 0.5), "mean"), operands)
        partial = meta(10, dtype=torch.float32)
        grad = meta(1, dtype=dtype)
        check(launch.reduced_call(operands, None, partial, operands), name, tmp_path)
        each = launch_for("triton", Problem(function, (0.9, 0.1), (1.0, 0.5), "none"), operands)
        check(each.elements_call(operands, operands[0], None, operands), name, tmp_path)
    check(launch.reduced_call(operands, grad, None, operands, True), name, tmp_path)
    check(each.elements_call(operands, None, operands[0], ()), name, tmp_path)
    check(launch.sum_call(partial, partial), name, tmp_path)


@pytest.mark.parametrize("name", ["sm_80", "sm_90"])
def test_a_thread_holds_all_of_a_window(name: str) -> None:
    """Pooling 2×2 moves nothing between threads: no shuffle in the whole kernel."""
    from triton.backends.compiler import GPUTarget

    call = next(launches(*convolution(name, torch.float16), "forward"))
    assert "shfl" not in call.compile(GPUTarget(*TARGETS[name])).asm["ptx"]
    call.constants.update(LOW=4, INNER=1)  # side by side, as sm_100 has it
    assert "shfl" in call.compile(GPUTarget(*TARGETS[name])).asm["ptx"]


def test_tiles_are_loaded_in_16_bytes_past_the_registers() -> None:
    """NHWC in half types: cp.async of 16 bytes, the widest there is, into a pipeline."""
    from triton.backends.compiler import GPUTarget

    for name in ("sm_80", "sm_90"):
        for call in launches(*convolution(name, torch.float16), "forward"):
            ptx = call.compile(GPUTarget(*TARGETS[name])).asm["ptx"]
            widths = re.findall(r"cp\.async\.c[ag]\.shared\.global[^;]*?, 0x([0-9a-f]+)", ptx)
            assert widths
            assert set(widths) == {"10"}, f"{name} {call.constants['BLOCK_N']}: {set(widths)}"


class DriverWithoutGpu:
    """What Triton asks a driver for before it compiles."""

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget(*TARGETS["sm_90"])

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def test_what_is_compiled_here_is_what_a_launch_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton's own way from the arguments of a launch to machine code, all but the launch."""
    import triton
    from triton.backends.compiler import GPUTarget

    monkeypatch.setattr(triton.runtime.driver, "_active", DriverWithoutGpu())
    calls = [
        next(launches(*convolution("sm_90", torch.float16), which))
        for which in ("forward", "input_gradient", "weight_gradient")
    ]
    operands = [meta(5000), meta(70)]
    launch = launch_for("triton", Problem("hinge", (1.0, -1.0), (1.0, 0.5), "mean"), operands)
    calls.append(launch.reduced_call(operands, None, meta(10), operands))
    for call in calls:
        launched = call.kernel.warmup(
            grid=call.grid,
            **call.arguments,
            **call.constants,
            num_warps=call.num_warps,
            num_stages=call.num_stages,
        )
        assert launched.asm["ptx"] == call.compile(GPUTarget(*TARGETS["sm_90"])).asm["ptx"]
