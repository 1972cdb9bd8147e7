"""Whole networks in PyTorch: eager, torch.compile, and fused by crossmedia_fast."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .. import memory, models
from ..data import Arrays
from ..shapes import TRAINING, Case
from . import Prepared


def _prepare(model: nn.Module, x: Tensor, variant: str) -> tuple[Callable[[Tensor], Tensor], str]:
    """The function that is timed, and a note."""
    torch._dynamo.reset()
    if variant.startswith("fused"):
        import crossmedia_fast as cmf

        report = cmf.fusion_report(cmf.fuse(model, x))
        fused = sum(row.fused for row in report)
        return model, f"{fused} of {len(report)} convolutions fused"
    if variant.startswith("compile"):
        if variant == "compile_freezing":
            import torch._inductor.config as inductor

            inductor.freezing = True
        return torch.compile(model, fullgraph=True, dynamic=False), ""
    return model, ""


def build(case: Case, arrays: Arrays, threads: int, variant: str) -> Prepared:
    torch.set_num_threads(threads)
    model = models.network(case)
    format: Any = torch.contiguous_format
    if variant.endswith("channels_last"):
        format = torch.channels_last
    model = model.to(memory_format=format)
    x = torch.from_numpy(arrays["input"]).contiguous(memory_format=format)
    run, note = _prepare(model, x, variant)

    if case.mode != TRAINING:

        def infer() -> Tensor:
            with torch.inference_mode():
                return run(x)

        return Prepared(infer, lambda: models.results(model, infer(), False), note)

    grad_output = torch.from_numpy(arrays["grad_output"])
    parameters = tuple(model.parameters())
    latest: list[Tensor] = []

    def train() -> None:
        for parameter in parameters:
            parameter.grad = None
        output = run(x)
        output.backward(grad_output)
        latest[:] = [output.detach()]

    def trained() -> Arrays:
        train()
        return models.results(model, latest[0], True)

    def peak() -> int | None:
        train()
        for parameter in parameters:  # the step's own gradients count
            parameter.grad = None
        return memory.peak_bytes(train)

    return Prepared(train, trained, note, peak_bytes=peak)
