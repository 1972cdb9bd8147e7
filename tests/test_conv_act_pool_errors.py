"""Bad calls: each raises what PyTorch's users expect, naming the argument, and none crashes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import crossmedia_fast as cmf

HUGE = 2**40

x = torch.zeros(2, 4, 9, 9)
w = torch.zeros(6, 4, 3, 3)
b = torch.zeros(6)

# (changed arguments, error, a word of the message)
BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    # tensors
    ({"input": None}, TypeError, "input"),
    ({"input": [[1.0]]}, TypeError, "input"),
    ({"input": x.numpy()}, TypeError, "input"),
    ({"weight": None}, TypeError, "weight"),
    ({"weight": 3}, TypeError, "weight"),
    ({"bias": 0.5}, TypeError, "bias"),
    ({"bias": "none"}, TypeError, "bias"),
    ({"input": x[0, 0]}, ValueError, "input"),
    ({"input": x[0, 0, 0]}, ValueError, "input"),
    ({"input": x[None]}, ValueError, "input"),
    ({"input": torch.zeros(())}, ValueError, "input"),
    ({"weight": w[0]}, ValueError, "weight"),
    ({"weight": w[None]}, ValueError, "weight"),
    ({"bias": b[None]}, ValueError, "bias"),
    ({"bias": torch.zeros(())}, ValueError, "bias"),
    ({"bias": b[:5]}, ValueError, "bias"),
    ({"bias": torch.zeros(0)}, ValueError, "bias"),
    ({"input": x.long()}, TypeError, "input"),
    ({"input": x.bool()}, TypeError, "input"),
    ({"input": x.to(torch.complex64)}, TypeError, "input"),
    ({"input": x.double()}, TypeError, "weight"),
    ({"weight": w.half()}, TypeError, "weight"),
    ({"weight": w.int()}, TypeError, "weight"),
    ({"bias": b.double()}, TypeError, "bias"),
    ({"bias": b.to(torch.uint8)}, TypeError, "bias"),
    ({"input": x.to_sparse()}, NotImplementedError, "input"),
    ({"weight": w.to_sparse()}, NotImplementedError, "weight"),
    ({"bias": b.to_sparse()}, NotImplementedError, "bias"),
    ({"input": x.to_mkldnn()}, NotImplementedError, "input"),
    ({"weight": w.to("meta")}, ValueError, "weight"),
    ({"bias": b.to("meta")}, ValueError, "bias"),
    ({"input": x[:, :3]}, ValueError, "weight"),
    ({"input": x[:, :0]}, ValueError, "input"),
    ({"input": x[:, :, :0]}, ValueError, "input"),
    ({"input": x[:, :, :, :0]}, ValueError, "input"),
    ({"weight": w[:0]}, ValueError, "weight"),
    ({"weight": w[:, :, :0]}, ValueError, "weight"),
    ({"weight": w[:, :2]}, ValueError, "weight"),
    ({"input": x[:, :, :2]}, ValueError, "weight"),
    # the convolution's arguments
    ({"stride": 0}, ValueError, "stride"),
    ({"stride": -1}, ValueError, "stride"),
    ({"stride": HUGE}, ValueError, "stride"),
    ({"stride": (1, 0)}, ValueError, "stride"),
    ({"stride": (1, 1, 1)}, ValueError, "stride"),
    ({"stride": ()}, ValueError, "stride"),
    ({"stride": 1.5}, TypeError, "stride"),
    ({"stride": "1"}, TypeError, "stride"),
    ({"stride": None}, TypeError, "stride"),
    ({"padding": -1}, ValueError, "padding"),
    ({"padding": HUGE}, ValueError, "padding"),
    ({"padding": "full"}, ValueError, "padding"),
    ({"padding": "same", "stride": 2}, ValueError, "padding"),
    ({"padding": 0.5}, TypeError, "padding"),
    ({"padding": 2**31 - 1, "dilation": 1}, ValueError, "output"),
    ({"dilation": 0}, ValueError, "dilation"),
    ({"dilation": -2}, ValueError, "dilation"),
    ({"dilation": HUGE}, ValueError, "dilation"),
    ({"dilation": 5}, ValueError, "weight"),
    ({"dilation": 2**31 - 1}, ValueError, "weight"),
    ({"groups": 0}, ValueError, "groups"),
    ({"groups": -1}, ValueError, "groups"),
    ({"groups": 3}, ValueError, "groups"),
    ({"groups": 2}, ValueError, "weight"),
    ({"groups": HUGE}, ValueError, "groups"),
    ({"groups": 1.0}, TypeError, "groups"),
    # activation
    ({"activation": "swish2"}, ValueError, "activation"),
    ({"activation": ""}, ValueError, "activation"),
    ({"activation": None}, TypeError, "activation"),
    ({"activation": torch.relu}, TypeError, "activation"),
    ({"activation": "relu", "activation_param": 0.1}, ValueError, "activation_param"),
    ({"activation": "leaky_relu", "activation_param": "0.1"}, TypeError, "activation_param"),
    ({"activation": "elu", "activation_param": []}, TypeError, "activation_param"),
    ({"activation": "elu", "activation_param": True}, TypeError, "activation_param"),
    # pooling
    ({"pool": "mean"}, ValueError, "pool"),
    ({"pool": None}, TypeError, "pool"),
    ({"pool_size": 0}, ValueError, "pool_size"),
    ({"pool_size": -2}, ValueError, "pool_size"),
    ({"pool_size": HUGE}, ValueError, "pool_size"),
    ({"pool_size": 8}, ValueError, "pool_size"),
    ({"pool_size": (2, 8)}, ValueError, "pool_size"),
    ({"pool_size": (2, 2, 2)}, ValueError, "pool_size"),
    ({"pool_size": 2.0}, TypeError, "pool_size"),
    ({"pool_size": None}, TypeError, "pool_size"),
    ({"pool_size": 2**31 - 1, "pool_padding": 2**30 - 1}, ValueError, "pool_size"),
    ({"pool_stride": 0}, ValueError, "pool_stride"),
    ({"pool_stride": -1}, ValueError, "pool_stride"),
    ({"pool_stride": HUGE}, ValueError, "pool_stride"),
    ({"pool_stride": "2"}, TypeError, "pool_stride"),
    ({"pool_padding": 2}, ValueError, "pool_padding"),
    ({"pool_padding": -1}, ValueError, "pool_padding"),
    ({"pool_padding": HUGE}, ValueError, "pool_padding"),
    ({"ceil_mode": 1}, TypeError, "ceil_mode"),
    ({"ceil_mode": None}, TypeError, "ceil_mode"),
    ({"count_include_pad": "yes"}, TypeError, "count_include_pad"),
    # backend
    ({"backend": "gpu"}, ValueError, "backend"),
    ({"backend": ""}, ValueError, "backend"),
    ({"backend": 0.5}, TypeError, "backend"),
    ({"backend": "cuda"}, NotImplementedError, "cuda"),
    ({"backend": "triton"}, NotImplementedError, "triton"),
]


def test_the_table_is_long_enough() -> None:
    assert len(BAD) >= 60


def name_value(value: object) -> str:
    """The same in every process: a test is found by its name."""
    if isinstance(value, torch.Tensor):
        return str(tuple(value.shape))
    return getattr(value, "__name__", str(value))


@pytest.mark.parametrize(
    ("changed", "error", "word"),
    BAD,
    ids=["-".join(f"{k}={name_value(v)}" for k, v in changed.items()) for changed, _, _ in BAD],
)
def test_a_bad_call_names_its_argument(
    changed: dict[str, Any], error: type[Exception], word: str
) -> None:
    arguments = {"input": x, "weight": w, "bias": b, **changed}
    # after a good call, and twice: what an earlier call has cached must not let this one through
    cmf.conv_act_pool2d(x, w, b)
    for _ in range(2):
        with pytest.raises(error, match=word):
            cmf.conv_act_pool2d(**arguments)
    if "backend" not in changed:
        with pytest.raises(error, match=word):
            cmf.conv_act_pool2d_reference(**arguments)


def test_unknown_and_missing_arguments_are_type_errors() -> None:
    with pytest.raises(TypeError):
        cmf.conv_act_pool2d(x)  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        cmf.conv_act_pool2d(x, w, b, activations="relu")  # type: ignore[call-arg]


def test_a_good_call_still_works_after_all_of_them() -> None:
    assert cmf.conv_act_pool2d(x, w, b).shape == (2, 6, 3, 3)
