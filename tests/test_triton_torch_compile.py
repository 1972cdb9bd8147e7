"""The Triton kernels under torch.compile: one graph, and in it the launches themselves.

Traced without a GPU: tensors without memory (meta), and a Triton driver that only says which GPU it
would compile for, so that PyTorch's analysis of what each launch writes runs as it would there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import crossmedia_fast as cmf
from crossmedia_fast import triton_support
from crossmedia_fast.ops.conv_act_pool.arguments import check_conv, check_pool
from crossmedia_fast.ops.gan_loss.arguments import Problem

pytestmark = [
    pytest.mark.skipif(
        bool(triton_support.why_not_importable()), reason=triton_support.why_not_importable()
    ),
    pytest.mark.skipif(triton_support.interpreting(), reason="the interpreter is not traced"),
    # torch.compile's own, of a compiler that returns a plain function
    pytest.mark.filterwarnings("ignore:Your compiler for AOTAutograd:UserWarning"),
]


class DriverWithoutGpu:
    """What Triton asks a driver for while it makes its intermediate code."""

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)


@pytest.fixture(autouse=True)
def _driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    import triton

    if not torch.cuda.is_available():
        monkeypatch.setattr(triton.runtime.driver, "_active", DriverWithoutGpu())
    yield
    torch.compiler.reset()


def written(function: Callable[..., Tensor], *tensors: Tensor) -> list[set[str]]:
    """What each launch of the forward and backward graphs writes, by argument name."""
    from torch._dynamo.backends.common import aot_autograd

    launches = []

    def look(graph: torch.fx.GraphModule, _: Any) -> torch.fx.GraphModule:
        launches.extend(
            set(node.kwargs["tensors_to_clone"])
            for node in graph.graph.nodes
            if node.target is torch.ops.higher_order.triton_kernel_wrapper_functional
        )
        return graph

    backend = aot_autograd(fw_compiler=look, bw_compiler=look)
    result = torch.compile(function, backend=backend, fullgraph=True)(*tensors)
    result.backward(torch.empty_like(result))
    return launches


def parameters(*shapes: tuple[int, ...]) -> list[Tensor]:
    return [torch.empty(shape, device="meta", requires_grad=True) for shape in shapes]


@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_the_fused_convolution(activation: str) -> None:
    from crossmedia_fast.ops.conv_act_pool import triton_registration

    conv = check_conv(1, 1, 1, 1)
    pool = check_pool(activation, None, "max", 2, None, 0, False, True)

    def function(x: Tensor, w: Tensor, bias: Tensor) -> Tensor:
        return triton_registration.conv_act_pool2d(x, w, bias, conv, pool, True)

    z = {"preactivation_ptr"} if activation == "silu" else set()
    assert written(function, *parameters((2, 16, 8, 8), (16, 16, 3, 3), (16,))) == [
        {"y_ptr", "index_ptr", *z},
        {"g_ptr", "partial_ptr"},  # the pooled gradient, and dbias in two steps
        {"out_ptr"},
        {"dx_ptr"},
        {"partial_ptr"},  # dw in two steps
        {"out_ptr"},
    ]


def test_the_epilogue() -> None:
    from crossmedia_fast.ops.conv_act_pool import triton_registration

    pool = check_pool("relu", None, "max", 2, None, 0, False, True)

    def function(x: Tensor, bias: Tensor) -> Tensor:
        return triton_registration.act_pool2d(x, bias, pool, True)

    assert written(function, *parameters((2, 16, 8, 8), (16,))) == [
        {"y_ptr", "index_ptr"},
        {"g_ptr", "partial_ptr"},
        {"out_ptr"},
        {"dx_ptr"},
    ]


def test_a_loss_of_several_scales() -> None:
    from crossmedia_fast.ops.gan_loss import triton_registration

    problem = Problem("log_loss_logits", (0.9, 0.1), (1.0, 1.0), "mean")

    def function(real: Tensor, fake: Tensor) -> Tensor:
        return triton_registration.gan_loss(problem, [real, fake], None)

    assert written(function, *parameters((5000,), (20, 20))) == [
        {"partial_ptr"},
        {"loss_ptr"},
        {"gradient_0", "gradient_1"},
    ]


def test_an_unreduced_loss_with_a_weight() -> None:
    from crossmedia_fast.ops.gan_loss import triton_registration

    problem = Problem("log_loss_logits_target_weight", (0.0,), (1.0,), "none")

    def function(x: Tensor, target: Tensor, weight: Tensor) -> Tensor:
        return triton_registration.gan_loss(problem, [x, target, weight.detach()], None)

    assert written(function, *parameters((50,), (50,), (50,))) == [
        {"loss_ptr"},
        {"gradient_0", "gradient_1"},
    ]


def test_more_tensors_than_a_launch_takes_are_left_to_the_compiler() -> None:
    from crossmedia_fast.ops.gan_loss import triton_registration

    problem = Problem("hinge", (1.0,) * 9, (1.0,) * 9, "mean")

    def function(*operands: Tensor) -> Tensor:
        return triton_registration.gan_loss(problem, list(operands), None)

    assert written(function, *parameters(*[(5,)] * 9)) == []


@pytest.fixture
def _on_meta(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the backend ran on tensors without memory: the plan of a GPU's tensors."""
    monkeypatch.setattr(triton_support, "why_unavailable", lambda: "")
    monkeypatch.setattr(triton_support, "devices", lambda: ("cuda", "meta"))


@pytest.mark.usefixtures("_on_meta")
def test_the_public_functions_reach_the_kernels() -> None:
    def convolution(x: Tensor, w: Tensor, bias: Tensor) -> Tensor:
        return cmf.conv_act_pool2d(x, w, bias, padding=1, backend="triton")

    launches = written(convolution, *parameters((2, 16, 8, 8), (16, 16, 3, 3), (16,)))
    assert launches[0] == {"y_ptr", "index_ptr"}
    assert {"dx_ptr"} in launches

    def overlapping(x: Tensor, w: Tensor, bias: Tensor) -> Tensor:
        return cmf.conv_act_pool2d(
            x, w, bias, padding=1, pool_size=3, pool_stride=1, backend="triton"
        )

    torch.compiler.reset()
    launches = written(overlapping, *parameters((2, 16, 8, 8), (16, 16, 3, 3), (16,)))
    assert launches[0] == {"y_ptr", "index_ptr"}
    assert launches[-1] == {"dx_ptr"}  # the epilogue; the convolution's own gradient is PyTorch's

    def loss(real: Tensor, fake: Tensor) -> Tensor:
        return cmf.gan_discriminator_loss(real, fake, backend="triton")

    torch.compiler.reset()
    assert written(loss, *parameters((50,), (50,))) == [
        {"partial_ptr"},
        {"loss_ptr"},
        {"gradient_0", "gradient_1"},
    ]


@pytest.mark.usefixtures("_on_meta")
def test_export_keeps_the_ops() -> None:
    class Layer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.empty(16, 16, 3, 3, device="meta"))

        def forward(self, x: Tensor) -> Tensor:
            return cmf.conv_act_pool2d(x, self.weight, backend="triton")

    program = torch.export.export(Layer(), (torch.empty(2, 16, 8, 8, device="meta"),))
    targets = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert "crossmedia_fast.triton_conv_act_pool2d.default" in targets
