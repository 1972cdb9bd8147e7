"""What benchmarks.gpu measures: layers, the epilogue alone, losses; the ways to compute each."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import crossmedia_fast as cmf
from crossmedia_fast.backends import why_unavailable
from crossmedia_fast.ops.conv_act_pool import prepared
from crossmedia_fast.ops.conv_act_pool.arguments import check_pool
from crossmedia_fast.ops.conv_act_pool.kernels import launch_for
from crossmedia_fast.ops.conv_act_pool.plan import ALGORITHMS
from crossmedia_fast.ops.conv_act_pool.reference import act_pool2d

from .peers.torch_peer import conv_arguments
from .shapes import CONV_SHAPES, QUICK, ConvShape

# "float32": TF32 is off, in convolutions too
DTYPES = {
    "float32": torch.float32,
    "tf32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
# Relative to the largest value of the reference in float64: a wrong kernel is off by all of it, a
# sum of some thousand products in the dtype's rounding by less than this.
_WRONG = {"float32": 1e-4, "tf32": 1e-2, "float16": 1e-2, "bfloat16": 5e-2}
_FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
_ELEMENTS = 1 << 25  # of a layer's input and its convolution's output: enough to fill any GPU


@dataclasses.dataclass
class Way:
    """One way to compute a case: `prepare` gives the call that is timed."""

    name: str
    prepare: Callable[[], Callable[[], Any]]
    check: Callable[[], None] = lambda: None
    forget: Callable[[], None] = lambda: None


@dataclasses.dataclass
class Case:
    name: str
    dtype: str
    operations: int
    bytes: int
    ways: Callable[[], Iterator[Way]]


def cases(device: str, quick: bool, tiny: bool) -> Iterator[Case]:
    """All cases; `tiny`: sizes for a run that is only to be right."""
    yield from _epilogues(device, quick or tiny, tiny)
    yield from _layers(device, quick or tiny, tiny)
    yield from _losses(device, tiny)


def _compare(actual: Tensor, expected: Tensor, dtype: str) -> None:
    error = (actual.double() - expected).abs().max().item()
    scale = expected.abs().max().item()
    if not error <= _WRONG[dtype] * scale:
        raise ArithmeticError(f"off by {error:.2e} of {scale:.2e}")


# -- a layer: convolution, activation, pooling --


def _layers(device: str, quick: bool, tiny: bool) -> Iterator[Case]:
    picked = QUICK["inference"] + QUICK["training"]
    for shape in CONV_SHAPES:
        if quick and shape.name not in picked:
            continue
        batch = _ELEMENTS // (shape.channels * shape.size**2 + shape.filters * shape.conv_size**2)
        batch = max(16, min(4096, 1 << batch.bit_length() - 1))
        if tiny:
            batch = 1
            size = min(shape.size, 2 * shape.kernel + 8)
            shape = dataclasses.replace(
                shape, size=size, channels=min(shape.channels, 8), filters=8
            )
        for mode in ("inference", "training"):
            for dtype in DTYPES:
                for form in _FORMATS:
                    yield _layer(shape, batch, mode, dtype, form, device)


def _layer(shape: ConvShape, batch: int, mode: str, dtype: str, form: str, device: str) -> Case:
    train = mode == "training"
    itemsize = DTYPES[dtype].itemsize
    taps = shape.channels // shape.groups * shape.kernel**2
    x = batch * shape.channels * shape.size**2
    y = batch * shape.filters * shape.pooled_size**2
    w = shape.filters * taps
    products = 2 * batch * shape.filters * shape.conv_size**2 * taps
    # I/O as benchmarks.work counts it: each tensor once per pass that must see it
    size, passes = itemsize * (x + w + y), 1
    if train:
        size = itemsize * (2 * x + 3 * w + 2 * y + (0 if shape.first else x))
        size += 2 * y if shape.pool == "max" else 0
        passes = 2 if shape.first else 3
    name = f"{shape.name}:{mode}:{dtype}:{form}:{batch}"

    def ways() -> Iterator[Way]:
        generator = torch.Generator().manual_seed(0)

        def normal(*sizes: int) -> Tensor:
            made = torch.randn(sizes, generator=generator)
            return made.to(DTYPES[dtype]).to(device)

        sides = (shape.kernel, shape.kernel)
        tensors = [
            normal(batch, shape.channels, shape.size, shape.size).to(memory_format=_FORMATS[form]),
            normal(shape.filters, shape.channels // shape.groups, *sides) / taps**0.5,
            normal(shape.filters),
        ]
        arguments = conv_arguments(shape)
        convolution = {key: arguments[key] for key in ("stride", "padding", "groups")}
        yield _layer_way("convolution alone", F.conv2d, convolution, tensors, train, shape, dtype)
        reference = cmf.conv_act_pool2d_reference
        yield _layer_way("eager", reference, arguments, tensors, train, shape, dtype)
        if device == "cuda":
            compiled = torch.compile(reference, mode="max-autotune-no-cudagraphs")
            yield _layer_way("compiled", compiled, arguments, tensors, train, shape, dtype)
        for backend in ("cuda", "triton"):
            for algorithm in ALGORITHMS[backend]:
                if algorithm != "convolution":
                    yield _layer_way(
                        f"{backend} {algorithm}",
                        cmf.conv_act_pool2d,
                        {**arguments, "backend": backend},
                        tensors,
                        train,
                        shape,
                        dtype,
                        algorithm,
                    )

    return Case(name, dtype, passes * products, size, ways)


def _layer_way(
    name: str,
    function: Callable[..., Tensor],
    arguments: dict[str, Any],
    tensors: list[Tensor],
    train: bool,
    shape: ConvShape,
    dtype: str,
    algorithm: str | None = None,
) -> Way:
    needs = [not shape.first, True, True]
    leaves = [
        t.detach().requires_grad_(train and need) for t, need in zip(tensors, needs, strict=True)
    ]
    inputs = [t for t in leaves if t.requires_grad]

    def prepare() -> Callable[[], Any]:
        # a forced algorithm is part of what is cached
        prepared.prepared_calls.clear()
        prepared.forced_algorithm = algorithm

        def forward() -> Tensor:
            with torch.inference_mode():
                return function(*tensors, **arguments)

        def both() -> Any:
            y = function(*leaves, **arguments)
            return torch.autograd.grad(y, inputs, torch.ones_like(y))

        return both if train else forward

    def check() -> None:
        with torch.no_grad():
            two = [tensors[0][:2], *tensors[1:]]
            y = function(*two, **arguments)
            if name != "convolution alone":
                given = {k: v for k, v in arguments.items() if k != "backend"}
                doubles = [t.double() for t in two]
                _compare(y, cmf.conv_act_pool2d_reference(*doubles, **given), dtype)
        if train:
            prepare()()

    def forget() -> None:
        prepared.forced_algorithm = None
        prepared.prepared_calls.clear()

    return Way(name, prepare, check, forget)


# -- bias, activation and pooling alone --

_POOLS = {
    "max2": ("max", 2, None, 0, False, True),
    "max3s2": ("max", 3, 2, 1, False, True),
    "avg2": ("avg", 2, None, 0, False, True),
    "none": ("none", 2, None, 0, False, True),
}
_PLANES = {"large": (32, 64, 224), "small": (256, 512, 14), "odd": (64, 65, 55)}


def _epilogues(device: str, quick: bool, tiny: bool) -> Iterator[Case]:
    for plane, (batch, channels, side) in _PLANES.items():
        if quick and plane == "odd":
            continue
        shape = (1, 8, 16, 16) if tiny else (batch, channels, side, side)
        for pool in _POOLS:
            for activation in ("relu",) if quick else ("relu", "gelu"):
                for dtype in ("float32", "float16", "bfloat16"):
                    for form in _FORMATS:
                        for mode in ("forward", "backward"):
                            yield _epilogue(
                                plane, shape, pool, activation, dtype, form, mode, device
                            )


def _epilogue(
    plane: str,
    shape: tuple[int, int, int, int],
    pool: str,
    activation: str,
    dtype: str,
    form: str,
    mode: str,
    device: str,
) -> Case:
    pool2d = check_pool(activation, None, *_POOLS[pool])
    last = form == "channels_last"
    y_count = shape[0] * shape[1] * int(torch.Size(pool2d.output_size(*shape[2:])).numel())
    x_count = torch.Size(shape).numel()
    itemsize = DTYPES[dtype].itemsize
    index = y_count if pool2d.pool == "max" else 0
    if mode == "forward":
        size = itemsize * (x_count + y_count)  # as in inference: no index
    else:  # dy and y (or the pre-activation, or x), and dx
        size = itemsize * (x_count + 2 * y_count) + index

    def ways() -> Iterator[Way]:
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(shape, generator=generator).to(DTYPES[dtype]).to(device)
        x = x.contiguous(memory_format=_FORMATS[form])
        bias = torch.linspace(-1, 1, shape[1]).to(x)

        def reference(x: Tensor, bias: Tensor) -> Tensor:
            return act_pool2d(x + bias[:, None, None], pool2d)

        def of_reference(function: Callable[..., Tensor]) -> Callable[[], Any]:
            if mode == "forward":
                return lambda: function(x, bias)
            leaves = [x.detach().requires_grad_(), bias.detach().requires_grad_()]
            y = function(*leaves)
            dy = torch.ones_like(y)
            return lambda: torch.autograd.grad(y, leaves, dy, retain_graph=True)

        yield Way("eager", lambda: of_reference(reference))
        if device == "cuda":
            compiled = torch.compile(reference, mode="max-autotune-no-cudagraphs")
            yield Way("compiled", lambda: of_reference(compiled))

        def of_kernel(backend: str) -> Callable[[], Any]:
            if reason := why_unavailable(backend):
                raise NotImplementedError(reason)
            launch = launch_for(backend, shape, x.dtype, last, pool2d)
            if mode == "forward":
                return lambda: launch.forward(x, bias, save=False)
            y, index, kept = launch.forward(x, bias, save=True)
            saved = {"output": y, "preactivation": kept, "input": x}.get(launch.saved)
            dy = torch.ones_like(y)
            return lambda: launch.backward(dy, saved, bias, index, True, True)

        for backend in ("cuda", "triton"):

            def check(backend: str = backend) -> None:
                launch = launch_for(backend, shape, x.dtype, last, pool2d)
                y = launch.forward(x, bias, save=False)[0]
                _compare(y[:1], reference(x[:1].double(), bias.double()), dtype)

            yield Way(backend, lambda backend=backend: of_kernel(backend), check)

    name = f"epilogue.{plane}.{pool}.{activation}:{mode}:{dtype}:{form}"
    return Case(name, dtype, 0, size, ways)


# -- losses --


def _losses(device: str, tiny: bool) -> Iterator[Case]:
    for count in (64,) if tiny else (64, 14_400, 4_000_000, 1 << 26):
        for loss in ("minimax", "hinge", "relativistic"):
            for dtype in ("float32", "bfloat16"):
                yield _loss(loss, count, dtype, device)


def _loss(loss: str, count: int, dtype: str, device: str) -> Case:
    def ways() -> Iterator[Way]:
        generator = torch.Generator().manual_seed(0)
        logits = [torch.randn(count, generator=generator) for _ in range(2)]
        leaves = [x.to(DTYPES[dtype]).to(device).requires_grad_() for x in logits]

        def of(function: Callable[..., Tensor], **more: Any) -> Callable[[], Any]:
            return lambda: torch.autograd.grad(function(*leaves, loss=loss, **more), leaves)

        reference = cmf.gan_discriminator_loss_reference
        yield Way("eager", lambda: of(reference))
        if device == "cuda":
            compiled = torch.compile(reference, mode="max-autotune-no-cudagraphs")
            yield Way("compiled", lambda: of(compiled))
        for backend in ("cuda", "triton"):

            def check(backend: str = backend) -> None:
                actual = cmf.gan_discriminator_loss(*leaves, loss=loss, backend=backend)
                _compare(actual, reference(*[x.double() for x in leaves], loss=loss), dtype)

            yield Way(backend, lambda b=backend: of(cmf.gan_discriminator_loss, backend=b), check)

    # read both tensors of logits, write both gradients
    size = 4 * count * DTYPES[dtype].itemsize
    return Case(f"loss.{loss}.{count}:training:{dtype}", dtype, 0, size, ways)
