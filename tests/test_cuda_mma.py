"""The emulator's matrix instructions against the register layout that the PTX manual prints.

"Matrix Fragments for mma.m16n8k16 with floating point type" and "... for mma.m16n8k8", formula by
formula: groupID = lane / 4, threadID_in_group = lane % 4, element i of a fragment.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

shim = pytest.importorskip(
    "crossmedia_fast._cuda_shim", reason="built without the emulator (CROSSMEDIA_FAST_CUDA_SHIM)"
)
SPECIAL = (0x0001, 0x8001, 0x03FF, 0x0400, 0x7BFF, 0x7C00, 0xFC00, 0x7E00, 0x7F7F, 0xFF80)
HALVES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def fragments_16(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """The registers of a [16, 16] and b [16, 8], two elements each."""
    left, right = torch.empty(32, 8, dtype=a.dtype), torch.empty(32, 4, dtype=b.dtype)
    for lane in range(32):
        group, thread = lane // 4, lane % 4
        for i in range(8):
            row = group if i < 2 or 4 <= i < 6 else group + 8
            column = thread * 2 + (i & 1) if i < 4 else thread * 2 + (i & 1) + 8
            left[lane, i] = a[row, column]
        for i in range(4):
            row = thread * 2 + (i & 1) if i < 2 else thread * 2 + (i & 1) + 8
            right[lane, i] = b[row, group]
    return left, right


def fragments_8(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """The registers of a [16, 8] and b [8, 8], an element each."""
    left, right = torch.empty(32, 4), torch.empty(32, 2)
    for lane in range(32):
        group, thread = lane // 4, lane % 4
        for i in range(4):
            row = group if i in (0, 2) else group + 8
            left[lane, i] = a[row, thread if i in (0, 1) else thread + 4]
        for i in range(2):
            right[lane, i] = b[thread if i == 0 else thread + 4, group]
    return left, right


def accumulators(c: Tensor) -> Tensor:
    """The registers of c [16, 8]."""
    registers = torch.empty(32, 4)
    for lane in range(32):
        for i in range(4):
            registers[lane, i] = c[lane // 4 + (8 if i >= 2 else 0), lane % 4 * 2 + (i & 1)]
    return registers


def product(name: str, left: Tensor, right: Tensor, c: Tensor) -> Tensor:
    sums = accumulators(c)
    shim.run_mma(name, left.data_ptr(), right.data_ptr(), sums.data_ptr())
    return sums


@pytest.mark.parametrize("name", ["bfloat16", "float16", "tf32"])
def test_products(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    depth = 8 if name == "tf32" else 16
    # integers up to 2^8 are exact in all three, and so is their sum
    a, b, c = (
        torch.randint(-200, 201, shape, generator=generator).to(HALVES.get(name, torch.float32))
        for shape in ((16, depth), (depth, 8), (16, 8))
    )
    fragments = fragments_8 if name == "tf32" else fragments_16
    actual = product(name, *fragments(a, b), c.float())
    assert torch.equal(actual, accumulators(a.float() @ b.float() + c.float()))


def test_half_types_hold_what_they_hold() -> None:
    """Subnormals, infinities, NaN and signs, one at a time beside zeros."""
    for name, dtype in HALVES.items():
        for bits in (
            0x0001,
            0x8001,
            0x03FF,
            0x0400,
            0x7BFF,
            0x7C00,
            0xFC00,
            0x7E00,
            0x7F7F,
            0xFF80,
        ):
            value = torch.tensor(bits - (bits >> 15 << 16), dtype=torch.int16).view(dtype)
            a, b = torch.zeros(16, 16, dtype=dtype), torch.zeros(16, 8, dtype=dtype)
            a[3, 5], b[5, 2] = value, 1
            want = torch.zeros(16, 8)
            want[3] = value.float() * 0
            want[3, 2] = value.float()
            actual = product(name, *fragments_16(a, b), torch.zeros(16, 8))
            torch.testing.assert_close(actual, accumulators(want), rtol=0, atol=0, equal_nan=True)


def test_tf32_does_not_see_the_last_bits() -> None:
    a, b = torch.zeros(16, 8), torch.zeros(8, 8)
    a[0, 0] = 1 + 2**-10 + 2**-11  # tf32 has 10 bits behind the point
    b[0, 0] = 1
    assert product("tf32", *fragments_8(a, b), torch.zeros(16, 8))[0, 0] == 1 + 2**-10


@pytest.mark.parametrize("transposed", [False, True])
def test_matrices_are_loaded_by_rows(transposed: bool) -> None:
    """ldmatrix: of four matrices [8, 8] lane l gets elements 2 (l % 4) and the next of row l / 4,
    with .trans of column l / 4."""
    matrices = torch.randint(-(2**15), 2**15, (4, 8, 8), dtype=torch.int16)
    registers = torch.empty(32, 4, 2, dtype=torch.int16)
    shim.run_load_matrices(transposed, matrices.data_ptr(), registers.data_ptr())
    want = matrices.mT if transposed else matrices
    for lane in range(32):
        for matrix in range(4):
            pair = want[matrix, lane // 4, lane % 4 * 2 : lane % 4 * 2 + 2]
            assert torch.equal(registers[lane, matrix], pair)


def test_bank_conflicts_are_counted() -> None:
    """Eight rows of 16 bytes side by side fill the 32 banks once."""
    matrices = torch.zeros(4, 8, 8, dtype=torch.int16)
    registers = torch.empty(32, 4, 2, dtype=torch.int16)
    shim.take_bank_conflicts()
    shim.run_load_matrices(False, matrices.data_ptr(), registers.data_ptr())
    assert shim.take_bank_conflicts() == 0
    # the first one's row, eight times
    shim.run_load_matrices(False, matrices.data_ptr(), registers.data_ptr(), 0)
    assert shim.take_bank_conflicts() == 4 * 7
    assert shim.take_bank_conflicts() == 0
