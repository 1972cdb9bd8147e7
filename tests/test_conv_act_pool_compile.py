"""conv_act_pool2d under torch.compile, torch.export, FakeTensor, meta, make_fx and opcheck."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

import crossmedia_fast as cmf
from crossmedia_fast import native
from crossmedia_fast.ops.conv_act_pool import cpu, registration
from crossmedia_fast.ops.conv_act_pool.activation import ACTIVATIONS
from crossmedia_fast.ops.conv_act_pool.arguments import Pool2d, check_pool

from .conv_act_pool_cases import POOLS, make
from .tolerances import GRADIENTS, SAME_DTYPE, assert_within

needs_native = pytest.mark.skipif(
    native.module is None, reason=f"needs the native module: {native.reason}"
)

CASES = [("relu", "max"), ("silu", "max"), ("relu", "avg"), ("tanh", "avg"), ("gelu", "none")]


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize(("activation", "pool"), CASES)
def test_compile_without_graph_breaks(activation: str, pool: str, dynamic: bool) -> None:
    def f(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return cmf.conv_act_pool2d(x, w, b, padding=1, activation=activation, pool=pool)

    torch._dynamo.reset()
    compiled = torch.compile(f, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for batch, size in ((2, (8, 7)), (3, (10, 9))):
        tensors = make(batch=batch, size=size)
        ours = [t.clone().requires_grad_() for t in tensors]
        theirs = [t.clone().requires_grad_() for t in tensors]
        y, want = compiled(*ours), f(*theirs)
        assert_within(y.detach(), want.detach(), SAME_DTYPE[torch.float32])
        dy = torch.randn_like(y)
        for a, b in zip(
            torch.autograd.grad(y, ours, dy), torch.autograd.grad(want, theirs, dy), strict=True
        ):
            assert_within(a, b, GRADIENTS[torch.float32])
        with torch.no_grad():
            assert_within(compiled(*tensors), f(*tensors), SAME_DTYPE[torch.float32])


@pytest.mark.slow
def test_compile_with_inductor() -> None:
    torch._dynamo.reset()
    layer = cmf.nn.ConvActPool2d(2, 3, 3, padding=1)
    compiled = torch.compile(layer, fullgraph=True, dynamic=True)
    for batch in (2, 3):
        x = make(batch=batch)[0].requires_grad_()
        y, want = compiled(x), layer(x)
        assert_within(y.detach(), want.detach(), SAME_DTYPE[torch.float32])
        (a,) = torch.autograd.grad(y.sum(), x)
        (b,) = torch.autograd.grad(want.sum(), x)
        assert_within(a, b, GRADIENTS[torch.float32])


def test_compile_follows_use_backend() -> None:
    torch._dynamo.reset()
    tensors = make()
    compiled = torch.compile(cmf.conv_act_pool2d, fullgraph=True, backend="aot_eager")
    with cmf.use_backend("reference"):
        reference = compiled(*tensors)
    assert_within(compiled(*tensors), reference, SAME_DTYPE[torch.float32])


def test_export_with_a_dynamic_batch() -> None:
    layer = cmf.nn.ConvActPool2d(2, 3, 3, padding=1)
    x = make()[0]
    dynamic = {"input": {0: torch.export.Dim("batch", min=2, max=64)}}
    exported = torch.export.export(layer, (x,), dynamic_shapes=dynamic)
    both = torch.cat([x, x])
    assert_within(exported.module()(both), layer(both), SAME_DTYPE[torch.float32])
    buffer = io.BytesIO()
    torch.export.save(exported, buffer)
    buffer.seek(0)
    loaded = torch.export.load(buffer).module()
    assert_within(loaded(x), layer(x), SAME_DTYPE[torch.float32])


@pytest.mark.parametrize("pool", POOLS)
def test_fake_and_meta_tensors_have_the_real_shapes(pool: str) -> None:
    for channels_last in (False, True):
        tensors = make(channels_last=channels_last)
        y = cmf.conv_act_pool2d(*tensors, padding=1, **POOLS[pool])
        with FakeTensorMode() as mode:
            fakes = [mode.from_tensor(t) for t in tensors]
            fake = cmf.conv_act_pool2d(*fakes, padding=1, **POOLS[pool])
        metas = [t.to("meta") for t in tensors]
        meta = cmf.conv_act_pool2d(*metas, padding=1, **POOLS[pool])
        for twin in (fake, meta):
            assert twin.shape == y.shape
            assert twin.dtype == y.dtype
        assert fake.stride() == y.stride()


def test_make_fx_records_the_op() -> None:
    x, w, b = make()
    graph = make_fx(lambda x: cmf.conv_act_pool2d(x, w, b))(x)
    assert any("act_pool2d" in str(node.target) for node in graph.graph.nodes)
    other = torch.randn_like(x)
    assert_within(graph(other), cmf.conv_act_pool2d(other, w, b), SAME_DTYPE[torch.float32])


def test_the_default_device_does_not_matter() -> None:
    tensors = make()
    torch.set_default_device("meta")
    try:
        y = cmf.conv_act_pool2d(*tensors)
    finally:
        torch.set_default_device(None)
    assert y.device.type == "cpu"


def _op_arguments(activation: str, pool: str) -> tuple[Pool2d, tuple[Any, ...]]:
    case = {"pool_size": 2, "pool_stride": None, "pool_padding": 0, "ceil_mode": False}
    fused = check_pool(activation, None, **{**case, "pool": pool}, count_include_pad=True)
    return fused, registration._as_args(fused)


@needs_native
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(("activation", "pool"), CASES)
def test_opcheck(activation: str, pool: str, channels_last: bool) -> None:
    fused, arguments = _op_arguments(activation, pool)
    x = make(in_channels=3)[0]
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
    bias = torch.randn(3)
    ops = torch.ops.crossmedia_fast
    forward = ops.act_pool2d.default
    leaves = (x.clone().requires_grad_(), bias.clone().requires_grad_())
    torch.library.opcheck(forward, (*leaves, *arguments, channels_last, "cpu", True))
    torch.library.opcheck(forward, (x, None, *arguments, channels_last, "cpu", False))
    y, index, preactivation = ops.act_pool2d(x, bias, *arguments, channels_last, "cpu", True)
    kind = registration.saved_kind(fused)
    saved = {"output": y, "preactivation": preactivation, "input": x}.get(kind)
    codes = None if registration.index_dtype(fused) is None else index
    torch.library.opcheck(
        ops.act_pool2d_backward.default,
        (torch.randn_like(y), saved, bias, codes, list(x.shape), *arguments, channels_last, "cpu"),
    )


@needs_native
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_python_and_native_agree_on_what_is_saved(activation: str) -> None:
    for pool in ("max", "avg", "none"):
        for size in (2, 3, 16):
            if pool == "none" and size != 2:
                continue
            for param in (None, -1.0, 0.0, 0.5):
                try:
                    fused = check_pool(activation, param, pool, size, None, 0, False, True)
                except ValueError:  # this activation takes no parameter
                    continue
                launch = cpu.Launch((1, 2, 32, 32), torch.float32, False, fused)
                assert launch.saved == registration.saved_kind(fused)
                assert launch.index_dtype == registration.index_dtype(fused)


@needs_native
def test_the_registered_backward_refuses_wrong_tensors() -> None:
    _, arguments = _op_arguments("relu", "max")
    x = make(in_channels=3)[0]
    ops = torch.ops.crossmedia_fast
    y, index, _ = ops.act_pool2d(x, None, *arguments, False, "cpu", True)
    for change in ({"dy": y[:, :2]}, {"saved": None}, {"index": index[:1]}, {"index": index.int()}):
        call = {"dy": y, "saved": y, "index": index, **change}
        with pytest.raises(ValueError, match=next(iter(change))):
            ops.act_pool2d_backward(
                call["dy"],
                call["saved"],
                None,
                call["index"],
                list(x.shape),
                *arguments,
                False,
                "cpu",
            )


@needs_native
@pytest.mark.parametrize("backend", ["cuda", "triton", "nonsense"])
def test_the_registered_op_refuses_a_backend_that_cannot_read_its_tensors(backend: str) -> None:
    _, arguments = _op_arguments("relu", "max")
    x = make(in_channels=3)[0]
    with pytest.raises((NotImplementedError, ValueError), match=backend):
        torch.ops.crossmedia_fast.act_pool2d(x, None, *arguments, False, backend, True)
