"""What only a GPU can show: streams, graphs, devices, tensors of more than 2**31 elements."""

from __future__ import annotations

import pytest
import torch

import crossmedia_fast as cmf
from crossmedia_fast import cuda_support
from crossmedia_fast.ops.conv_act_pool import cuda
from crossmedia_fast.ops.conv_act_pool.arguments import check_pool

from .cuda_calls import HAS_GPU

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not HAS_GPU, reason="no GPU that the CUDA kernels run on"),
]

MAX = check_pool("relu", None, "max", 2, None, 0, False, True)


def test_the_backend_is_chosen_and_says_so() -> None:
    x, w = torch.randn(1, 3, 8, 8, device="cuda"), torch.randn(4, 3, 3, 3, device="cuda")
    assert cmf.explain(x, w).backend == "cuda"
    row = next(row for row in cmf.backends() if row.name == "cuda")
    assert row.available


def test_a_stream_of_its_own() -> None:
    x = torch.randn(8, 16, 64, 64, device="cuda")
    launch = cuda.Launch(tuple(x.shape), x.dtype, False, MAX)
    want = launch.forward(x, None, save=False)[0]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(10_000_000)
        late = x * 1  # not there yet when the launch is called
        y = launch.forward(late, None, save=False)[0]
    stream.synchronize()
    assert torch.equal(y, want)


def test_a_graph_of_convolution_and_loss() -> None:
    x = torch.randn(4, 3, 16, 16, device="cuda")
    w = torch.randn(8, 3, 3, 3, device="cuda", requires_grad=True)

    def step() -> tuple[torch.Tensor, torch.Tensor]:
        y = cmf.conv_act_pool2d(x, w, padding=1, activation="silu", backend="cuda")
        loss = cmf.gan_generator_loss(y, backend="cuda")
        return loss, torch.autograd.grad(loss, w)[0]

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    x.copy_(torch.randn_like(x))
    graph.replay()
    for actual, expected in zip(captured, step(), strict=True):
        torch.testing.assert_close(actual, expected)


def test_nothing_waits_for_the_device() -> None:
    x = torch.randn(4, 3, 16, 16, device="cuda")
    w = torch.randn(8, 3, 3, 3, device="cuda", requires_grad=True)

    def step() -> None:
        y = cmf.conv_act_pool2d(x, w, padding=1, backend="cuda")
        cmf.gan_generator_loss(y, backend="cuda").backward()

    step()  # libraries are loaded and handles made by then
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU")
def test_another_device_than_the_current_one() -> None:
    x = torch.randn(2, 3, 8, 8, device="cuda:1")
    launch = cuda.Launch(tuple(x.shape), x.dtype, False, MAX)
    y = launch.forward(x, None, save=False)[0]
    assert torch.equal(y, torch.nn.functional.max_pool2d(x.relu(), 2))
    assert torch.cuda.current_device() == 0


def test_a_launch_that_fails_says_which() -> None:
    x = torch.randn(1, 1, 4, 4, device="cuda")
    launch = cuda.Launch(tuple(x.shape), x.dtype, False, MAX)
    forward = cuda_support.kernels.act_pool2d_forward
    with pytest.raises(RuntimeError, match=r"cudaSetDevice.*x \[1, 1, 4, 4\]"):
        forward(launch.native, x.data_ptr(), 0, x.data_ptr() + 64, 0, 0, 99, 0)


@pytest.mark.slow
@pytest.mark.parametrize("channels_last", [False, True])
def test_more_than_2_31_elements(channels_last: bool) -> None:
    shape = (1, 16, 11600, 11600)  # 2.15e9
    if torch.cuda.mem_get_info()[0] < 16 << 30:
        pytest.skip("needs 16 GiB of free memory")
    x = torch.empty(shape, dtype=torch.float16, device="cuda")
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    x.uniform_(-1, 1)
    launch = cuda.Launch(shape, x.dtype, channels_last, MAX)
    y, index, _ = launch.forward(x, None, save=True)
    for rows in (slice(0, 64), slice(11536, 11600)):
        want = torch.nn.functional.max_pool2d(x[:, :, rows].relu(), 2)
        pooled = slice(rows.start // 2, rows.stop // 2)
        assert torch.equal(y[:, :, pooled], want)
    dy = torch.ones_like(y)
    dx, dbias = launch.backward(dy, y, None, index, True, True)
    assert dx is not None
    assert dbias is not None
    assert dx[:, :, -2:].float().sum() == y[:, :, -1:].gt(0).float().sum()
