"""What a backend offers this operation: the one place that knows the backends' modules.

A backend is a pair of modules, loaded when first asked for: `<backend>.py` with the class `Launch`
(bias, activation and pooling of a convolution's output), and `<backend>_choice.py` with the
function `choose` (its own convolutions, and which calls they take).
"""

from __future__ import annotations

import importlib
from collections.abc import Collection
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from .arguments import Conv2d, Pool2d

_MAX_CACHED = 4096


class ActPool2dLaunch(Protocol):
    """pool(act(x + bias)) for dense x [N, K, H, W] of one shape, dtype and memory format."""

    channels_last: bool
    dtype: torch.dtype
    index_dtype: torch.dtype | None
    saved: str  # what backward needs: "output" "preactivation" "input" "mask" "nothing"
    x_shape: tuple[int, ...]
    y_shape: tuple[int, ...]
    y_strides: tuple[int, ...]

    def forward(
        self, x: Tensor, bias: Tensor | None, save: bool, in_place: bool = False
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """y, and where `save`: the index (or mask) and the pre-activation that backward needs.

        `x` is dense in the launch's memory format, `bias` [K] contiguous. `in_place`: y may be
        written over x; pool "none" alone.
        """

    def backward(
        self,
        dy: Tensor,  # [N, K, P, Q], any strides
        saved: Tensor | None,  # what `self.saved` names: y, the pre-activation or x
        bias: Tensor | None,  # [K]
        index: Tensor | None,  # [N, K, P, Q]
        need_dx: bool,
        need_dbias: bool,
    ) -> tuple[Tensor | None, Tensor | None]:
        """dx [N, K, H, W] and dbias [K]."""


class NativeConv(Protocol):
    """A convolution of the backend's own with what follows it, for tensors of one shape."""

    backend: str
    conv: Conv2d
    pool: Pool2d

    def forward(
        self, x: Tensor, w: Tensor, bias: Tensor | None, save: bool
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """y; and where `save`, what backward wants of it: the saved tensor and the index."""

    def backward(
        self,
        dy: Tensor,
        saved: Tensor | None,
        index: Tensor | None,
        x: Tensor,
        w: Tensor,
        bias: Tensor | None,
        needs: tuple[bool, bool, bool],
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """dx, dw and dbias, each where `needs` says so."""


class Call(NamedTuple):
    """A checked call on plain tensors of one dtype, as a backend chooses its algorithm by it."""

    input: Tensor
    weight: Tensor
    x_shape: tuple[int, ...]  # [N, C, H, W]
    w_shape: tuple[int, ...]  # [K, C / groups, R, S]
    z_shape: tuple[int, ...]  # [N, K, H', W'], the convolution's output
    conv: Conv2d
    pool: Pool2d
    autocast: torch.dtype | None  # the dtype that autocast gives convolutions, where it is on
    needs_grad: bool
    forced: bool  # a test names the algorithm: cost is no reason against one


class Choice(Protocol):
    """What a backend makes of a call."""

    why_not: dict[str, str]  # algorithm -> why it does not take the call, "" where it does
    keeps_output: Collection[str]  # algorithms that leave what follows to a pass of its own

    def native(self, algorithm: str) -> NativeConv | None:
        """The algorithm, ready to run; None where it is no convolution of the backend's own."""


def _module(backend: str, suffix: str = "") -> Any:
    return importlib.import_module(f".{backend}{suffix}", __package__)


def choose(backend: str, call: Call) -> Choice:
    """What `backend` makes of a call."""
    return _module(backend, "_choice").choose(call)


_launches: dict[Any, ActPool2dLaunch] = {}


def launch_for(
    backend: str, x_shape: tuple[int, ...], dtype: torch.dtype, channels_last: bool, pool: Pool2d
) -> ActPool2dLaunch:
    """The cached launch of a problem on `backend`."""
    key = (backend, x_shape, dtype, channels_last, pool)
    launch = _launches.get(key)
    if launch is None:
        if len(_launches) >= _MAX_CACHED:
            _launches.clear()
        launch = _module(backend).Launch(x_shape, dtype, channels_last, pool)
        _launches[key] = launch
    return launch
