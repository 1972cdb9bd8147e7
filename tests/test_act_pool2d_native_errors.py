"""The native act_pool2d bindings refuse problems, addresses and thread counts without sense."""

from __future__ import annotations

import pytest
import torch

from crossmedia_fast import native

from .act_pool2d_native_calls import Call, Geometry

pytestmark = pytest.mark.skipif(native.module is None, reason=native.reason)

GOOD = {
    "batch": 2,
    "channels": 3,
    "height": 8,
    "width": 8,
    "out_height": 4,
    "out_width": 4,
    "pool_height": 2,
    "pool_width": 2,
    "pool_stride_height": 2,
    "pool_stride_width": 2,
    "pool_pad_height": 0,
    "pool_pad_width": 0,
    "count_include_pad": True,
    "pool": "max",
    "activation": "relu",
    "activation_param": 0.0,
    "dtype": "float32",
    "channels_last": False,
}
HUGE = 2**40
BAD_PROBLEMS = [
    {"batch": -1},
    {"channels": 0},
    {"channels": -3},
    {"height": 0},
    {"width": -(2**40)},
    {"out_height": 0},
    {"out_height": 5},
    {"out_width": 3},
    {"out_width": 2**40},
    {"pool_height": 0},
    {"pool_width": -2},
    {"pool_stride_height": 0},
    {"pool_stride_width": -1},
    {"pool_pad_height": 2},
    {"pool_pad_width": -1},
    {"pool": "median"},
    {"pool": ""},
    {"pool": "none"},
    {"activation": "relu7"},
    {"dtype": "int8"},
    {"batch": HUGE, "channels": HUGE},
    {"batch": HUGE, "channels": HUGE, "height": HUGE, "out_height": HUGE // 2},
    {"height": HUGE, "width": HUGE, "out_height": HUGE // 2, "out_width": HUGE // 2},
    {"height": 2**41, "out_height": 2**40},
    # a window whose positions exceed 31 bits
    {"pool_height": 2**20, "pool_width": 2**20, "height": 2**20, "width": 2**20}
    | {"out_height": 1, "out_width": 1},
]


@pytest.mark.parametrize("change", BAD_PROBLEMS, ids=lambda change: "-".join(change))
def test_a_bad_problem_is_a_value_error(change: dict[str, object]) -> None:
    native.module.ActPool2dProblem(**GOOD)
    with pytest.raises(ValueError):
        native.module.ActPool2dProblem(**(GOOD | change))


@pytest.mark.parametrize(
    "change",
    [{"batch": 2.5}, {"batch": "2"}, {"pool": 3}, {"activation": None}, {"activation_param": "x"}],
    ids=str,
)
def test_a_bad_type_is_a_type_error(change: dict[str, object]) -> None:
    with pytest.raises(TypeError):
        native.module.ActPool2dProblem(**(GOOD | change))


def test_huge_but_consistent_sizes_make_a_problem() -> None:
    native.module.ActPool2dProblem(
        **(GOOD | {"height": 2**30, "width": 2**20, "out_height": 2**29, "out_width": 2**19})
    )


@pytest.mark.parametrize(
    ("position", "value"),
    [(1, 0), (1, 2), (2, 2), (3, 0), (3, 1), (6, 0), (6, -1), (6, 2**20)],
)
def test_bad_addresses_and_threads_of_forward(position: int, value: int) -> None:
    call = Call(Geometry((1, 2, 4, 4), (2, 2), (2, 2)), "max")
    y = torch.zeros(1, 2, 2, 2)
    index = torch.zeros(1, 2, 2, 2, dtype=torch.uint8)
    arguments = [call.problem, call.x.data_ptr(), call.bias.data_ptr(), y.data_ptr()]
    arguments += [index.data_ptr(), 0, 1]
    native.module.act_pool2d_forward(*arguments)
    # 1 and 2 stand for an address that is off by that many bytes
    arguments[position] = arguments[position] + value if value in (1, 2) else value
    with pytest.raises(ValueError):
        native.module.act_pool2d_forward(*arguments)


@pytest.mark.parametrize(
    ("position", "value"),
    [(1, 0), (1, 1), (2, 0), (2, 2), (3, 1), (4, 0), (5, 1), (6, 2), (7, 0), (7, 2**20)],
)
def test_bad_addresses_and_threads_of_backward(position: int, value: int) -> None:
    call = Call(Geometry((1, 2, 4, 4), (2, 2), (2, 2)), "max")
    y, index, _ = call.forward()
    dx, dbias = torch.zeros(1, 2, 4, 4), torch.zeros(2)
    arguments = [call.problem, call.dy.data_ptr(), y.data_ptr(), call.bias.data_ptr()]
    arguments += [index.data_ptr(), dx.data_ptr(), dbias.data_ptr(), 1]
    native.module.act_pool2d_backward(*arguments)
    arguments[position] = arguments[position] + value if value in (1, 2) else value
    with pytest.raises(ValueError):
        native.module.act_pool2d_backward(*arguments)


def test_the_index_of_four_bytes_is_aligned() -> None:
    call = Call(Geometry((1, 1, 16, 16), (16, 16), (16, 16)), "max")
    assert call.problem.index_itemsize == 4
    index = torch.zeros(8, dtype=torch.uint8)
    y = torch.zeros(1)
    with pytest.raises(ValueError, match="index"):
        native.module.act_pool2d_forward(
            call.problem, call.x.data_ptr(), 0, y.data_ptr(), index.data_ptr() + 1, 0, 1
        )


def test_average_masks_need_their_index_and_other_pools_their_saved_values() -> None:
    masked = Call(Geometry((1, 1, 4, 4), (2, 2), (2, 2)), "avg", "relu")
    assert masked.problem.saved == "mask"
    dx = torch.zeros(16)
    with pytest.raises(ValueError, match="index"):
        native.module.act_pool2d_backward(
            masked.problem, masked.dy.data_ptr(), 0, 0, 0, dx.data_ptr(), 0, 1
        )
    from_input = Call(Geometry((1, 1, 4, 4), (2, 2), (2, 2)), "avg", "gelu")
    assert from_input.problem.saved == "input"
    with pytest.raises(ValueError, match="saved"):
        native.module.act_pool2d_backward(
            from_input.problem, from_input.dy.data_ptr(), 0, 0, 0, dx.data_ptr(), 0, 1
        )
