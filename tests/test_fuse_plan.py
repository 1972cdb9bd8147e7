"""fuse with example inputs: the plan decides by their shapes."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import crossmedia_fast as cmf

from .fuse_cases import chain, rows
from .fuse_models import VGG11BN, BasicBlock, ResNet18, settle


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 4, 12, 12, generator=torch.Generator().manual_seed(0))


def test_the_plan_decides(x: Tensor) -> None:
    model = chain(nn.ReLU(), nn.MaxPool2d(2)).eval()
    cmf.fuse(model, x)
    assert rows(model)["0"].fused
    with cmf.use_backend("reference"):
        cmf.fuse(model, x)
        row = rows(model)["0"]
        assert not row.fused
        assert "reference" in row.reason
        assert type(model) is nn.Sequential


def test_a_branch_that_the_example_does_not_reach(x: Tensor) -> None:
    model = settle(nn.Sequential(BasicBlock(4, 4)))
    model.add_module("spare", chain(nn.ReLU()))
    model.spare.requires_grad_(False)

    def forward(self: Any, x: Tensor) -> Tensor:
        return self[0](x)

    model.__class__ = type("OnlyFirst", (nn.Sequential,), {"forward": forward})
    cmf.fuse(model, x)
    found = rows(model)
    assert found["0.conv1"].fused
    assert not found["spare.0"].fused
    assert "does not reach" in found["spare.0"].reason


@pytest.mark.parametrize("kind", ["tensor", "tuple", "dict"])
def test_example_inputs_of_every_form(kind: str) -> None:
    x = torch.randn(1, 3, 64, 64)
    examples = {"tensor": x, "tuple": (x,), "dict": {"x": x}}[kind]
    model = settle(ResNet18())
    before = copy.deepcopy(model.state_dict())
    state = torch.random.get_rng_state()
    model.train()
    cmf.fuse(model, examples)
    assert any(row.fused for row in cmf.fusion_report(model))
    assert torch.equal(torch.random.get_rng_state(), state)
    for a, e in zip(model.state_dict().values(), before.values(), strict=True):
        assert torch.equal(a, e)


def test_wrong_arguments() -> None:
    with pytest.raises(TypeError, match="example_inputs must be a tensor"):
        cmf.fuse(VGG11BN(), 3)
    for function in (cmf.fuse, cmf.unfuse, cmf.fusion_report):
        with pytest.raises(TypeError, match=r"model must be a torch.nn.Module"):
            function(torch.zeros(1))  # type: ignore[arg-type]
