"""nn.ConvActPool2d is an nn.Conv2d: parameters, initialisation, state_dict, memory formats."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import crossmedia_fast as cmf

from .conv_act_pool_cases import make
from .tolerances import SAME_DTYPE, VALUES, assert_within


def test_it_is_a_conv2d_with_its_initialisation_and_state_dict() -> None:
    torch.manual_seed(3)
    plain = nn.Conv2d(2, 3, 3, padding=1)
    torch.manual_seed(3)
    layer = cmf.nn.ConvActPool2d(2, 3, 3, padding=1)
    assert isinstance(layer, nn.Conv2d)
    assert list(layer.state_dict()) == list(plain.state_dict())
    for name, value in plain.state_dict().items():
        assert torch.equal(value, layer.state_dict()[name])
    layer.load_state_dict(plain.state_dict(), strict=True)
    x = make()[0]
    unfused = nn.Sequential(plain, nn.ReLU(), nn.MaxPool2d(2))
    assert_within(layer(x), unfused(x), SAME_DTYPE[torch.float32])


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("padding", [1, (2, 1), "same"])
def test_padding_modes(mode: str, padding: int | tuple[int, int] | str) -> None:
    layer = cmf.nn.ConvActPool2d(2, 3, 3, padding=padding, padding_mode=mode, pool="avg")
    plain = nn.Conv2d(2, 3, 3, padding=padding, padding_mode=mode)
    plain.load_state_dict(layer.state_dict())
    x = make()[0]
    want = nn.functional.avg_pool2d(plain(x).relu(), 2)
    assert_within(layer(x), want, SAME_DTYPE[torch.float32])


def test_moves_between_dtypes_and_memory_formats() -> None:
    layer = cmf.nn.ConvActPool2d(2, 8, 3).double().to(memory_format=torch.channels_last)
    y = layer(make(dtype=torch.float64, channels_last=True)[0])
    assert y.dtype == torch.float64
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert cmf.nn.ConvActPool2d(2, 8, 3, device="meta", dtype=torch.bfloat16).weight.is_meta


def test_bad_arguments_raise_in_the_constructor() -> None:
    for arguments, word in (
        ({"activation": "rlu"}, "activation"),
        ({"pool": "median"}, "pool"),
        ({"pool_size": 0}, "pool_size"),
        ({"pool_padding": 3}, "pool_padding"),
        ({"activation_param": 1.0}, "activation_param"),
    ):
        with pytest.raises(ValueError, match=word):
            cmf.nn.ConvActPool2d(1, 1, 3, **arguments)


def test_the_representation_names_what_is_fused() -> None:
    layer = cmf.nn.ConvActPool2d(
        1, 8, 3, activation="elu", activation_param=0.5, pool="avg", pool_size=3, pool_stride=2,
        pool_padding=1, ceil_mode=True, count_include_pad=False,
    )  # fmt: skip
    text = repr(layer)
    for part in (
        "activation='elu'", "activation_param=0.5", "pool='avg'", "pool_size=3", "pool_stride=2",
        "pool_padding=1", "ceil_mode=True", "count_include_pad=False",
    ):  # fmt: skip
        assert part in text
    assert "pool_size" not in repr(cmf.nn.ConvActPool2d(1, 8, 3, pool="none"))


def test_it_trains_as_the_unfused_layers() -> None:
    """Ten steps of SGD from the same start end at the same weights."""
    torch.manual_seed(0)
    fused = nn.Sequential(
        cmf.nn.ConvActPool2d(1, 4, 3, padding=1, activation="leaky_relu"),
        cmf.nn.ConvActPool2d(4, 8, 3, padding=1, activation="tanh", pool="avg"),
        nn.Flatten(),
        nn.Linear(8 * 4 * 4, 5),
    ).double()
    plain = nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.LeakyReLU(), nn.MaxPool2d(2)),
        nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.Tanh(), nn.AvgPool2d(2)),
        nn.Flatten(),
        nn.Linear(8 * 4 * 4, 5),
    ).double()
    for ours, theirs in zip(fused.parameters(), plain.parameters(), strict=True):
        theirs.data.copy_(ours.data)
    x, target = torch.randn(6, 1, 16, 16, dtype=torch.float64), torch.randint(0, 5, (6,))
    for model in (fused, plain):
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        for _ in range(10):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), target).backward()
            optimizer.step()
    for ours, theirs in zip(fused.parameters(), plain.parameters(), strict=True):
        assert_within(ours.detach(), theirs.detach(), 1e-10)


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("formats", list(itertools.product((False, True), repeat=2)), ids=str)
@pytest.mark.parametrize(("channels", "groups"), [(1, 1), (16, 16), (8, 1)])
def test_the_memory_format_is_pytorchs(
    channels: int, groups: int, formats: tuple[bool, bool], grad: bool
) -> None:
    """Of one channel strides alone say which it is: a first layer's input, depthwise filters."""
    memory = [torch.channels_last if last else torch.contiguous_format for last in formats]
    x = torch.randn(2, channels, 12, 10).to(memory_format=memory[0])
    w = torch.randn(16, channels // groups, 3, 3).to(memory_format=memory[1])
    w.requires_grad_(grad)
    for pool in ("none", "max"):
        y = cmf.conv_act_pool2d(x, w, groups=groups, pool=pool)
        z = torch.relu(F.conv2d(x, w, groups=groups))
        expected = F.max_pool2d(z, 2) if pool == "max" else z
        assert y.stride() == expected.stride()
        assert_within(y.detach(), expected.detach(), VALUES[torch.float32])
