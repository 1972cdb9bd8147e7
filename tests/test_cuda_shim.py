"""The emulator that runs the CUDA kernels on the CPU: it must tell right kernels from wrong ones.

Each example is a kernel of csrc/cuda/shim/examples.cpp.
"""

from __future__ import annotations

import pytest
import torch

shim = pytest.importorskip(
    "crossmedia_fast._cuda_shim", reason="built without the emulator (CROSSMEDIA_FAST_CUDA_SHIM)"
)
ORDERS = [("forward", 0), ("reverse", 0), ("random", 1), ("random", 2)]
THREADS = 96


@pytest.fixture(autouse=True)
def _forward_afterwards():
    yield
    shim.set_order("forward")


def run(name: str, order: tuple[str, int] = ("forward", 0), values: torch.Tensor | None = None):
    if values is None:
        values = torch.arange(1, THREADS + 1, dtype=torch.float32)
    shim.set_order(*order)
    shim.run_example(name, values.data_ptr(), values.numel())
    return values


ROTATED = torch.arange(1, THREADS + 1, dtype=torch.float32).roll(-1)


@pytest.mark.parametrize("order", ORDERS)
def test_right_kernels_give_the_same_in_every_order(order: tuple[str, int]) -> None:
    assert torch.equal(run("rotate", order), ROTATED)
    assert torch.equal(run("rotate_async", order), ROTATED)
    sums = torch.arange(1.0, THREADS + 1).view(3, 32).sum(1, keepdim=True).expand(3, 32)
    assert torch.equal(run("warp_sum", order), sums.flatten())
    handed_over = torch.arange(1.0, THREADS + 1)
    handed_over[32:64] = handed_over[:32]
    assert torch.equal(run("named_barrier", order), handed_over)


@pytest.mark.parametrize("order", ORDERS)
def test_votes_and_shuffles_of_half_a_warp(order: tuple[str, int]) -> None:
    values = torch.randn(THREADS, generator=torch.Generator().manual_seed(0))
    values[:16] = 1.0
    halves = values.view(-1, 16) > 0
    following = torch.cat([halves[:, 1:], halves[:, -1:]], 1)
    assert torch.equal(run("votes", order, values), (halves & following).float().flatten())


@pytest.mark.parametrize(
    "name",
    ["rotate_without_barrier", "rotate_async_without_barrier", "rotate_async_without_wait"],
)
def test_a_missing_barrier_or_wait_shows(name: str) -> None:
    results = [run(name, order) for order in ORDERS]
    assert not all(torch.equal(result, ROTATED) for result in results)


def test_unwritten_shared_memory_is_nan() -> None:
    assert run("unwritten_shared").isnan().all()


def test_a_race_between_blocks_shows() -> None:
    results = [run("block_index", order, torch.zeros(4)) for order in ORDERS[:2]]
    assert not torch.equal(*results)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "half_a_barrier",
            r"threads wait .* 0-63 at the barrier of examples.cpp:\d+, 64-",
        ),
        ("two_barriers", "threads wait"),
        ("lane_that_left", "threads wait .* 0-6 in __shfl_xor_sync of examples.cpp"),
        ("different_calls", "lanes of one mask meet in different calls"),
        ("misaligned", "a misaligned vector access"),
        ("behind_shared", "wrote behind its dynamic shared memory"),
    ],
)
@pytest.mark.parametrize("order", ORDERS[:2])
def test_errors_are_found(name: str, message: str, order: tuple[str, int]) -> None:
    with pytest.raises(RuntimeError, match=f"kernel {name}: .*{message}"):
        run(name, order)
    # and the emulator runs on
    assert torch.equal(run("rotate"), ROTATED)


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="order must be"):
        shim.set_order("sideways")
    with pytest.raises(ValueError, match="no example"):
        run("nothing")
