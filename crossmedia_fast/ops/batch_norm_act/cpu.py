"""The CPU backend: allocates outputs and calls the native kernels of csrc/cpu/batch_norm_act.

Pointers leave Python here and nowhere else. Whatever reaches `data_ptr()` in this file has been
checked by its caller for dtype, shape, device and layout, or was allocated two lines above.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from ... import native
from ..conv_act_pool.memory_format import as_format, dense_strides
from ..memory import fresh

_MAX_CACHED = 4096
_STATISTICS = (
    3  # mean, what its rounding left, 1 / sqrt(variance + eps): common/batch_norm_act_problem.h
)


class Norm(NamedTuple):
    """What an operation is beside its tensors."""

    eps: float
    activation: str
    param: float


class Launch:
    """One problem, ready to call: the native struct and the sizes."""

    __slots__ = ("channels", "channels_last", "native", "norm", "x_shape", "x_strides")

    def __init__(self, x_shape: tuple[int, ...], channels_last: bool, norm: Norm) -> None:
        if native.module is None:
            raise NotImplementedError(f"backend 'cpu' can't run here: {native.reason}")
        batch, self.channels, height, width = x_shape
        self.native: Any = native.module.BatchNormActProblem(
            batch=batch,
            channels=self.channels,
            plane=height * width,
            eps=norm.eps,
            activation=norm.activation,
            activation_param=norm.param,
            channels_last=channels_last,
        )
        self.norm = norm
        self.channels_last = channels_last
        self.x_shape = x_shape
        self.x_strides = dense_strides(x_shape, channels_last)

    def forward(
        self,
        x: Tensor,  # [N, C, H, W], dense in the launch's format
        weight: Tensor | None,  # [C], contiguous, as are the others
        bias: Tensor | None,
        running_mean: Tensor | None,  # changed in place, as running_var
        running_var: Tensor | None,
        momentum: float,
    ) -> tuple[Tensor, Tensor]:
        """y [N, C, H, W], and the statistics [3, C] for `backward`."""
        y = fresh(x, self.x_shape, self.x_strides)
        statistics = x.new_empty((_STATISTICS, self.channels))
        native.module.batch_norm_act_forward(  # type: ignore[union-attr]
            self.native,
            x.data_ptr(),
            0 if weight is None else weight.data_ptr(),
            0 if bias is None else bias.data_ptr(),
            0 if running_mean is None else running_mean.data_ptr(),
            0 if running_var is None else running_var.data_ptr(),
            momentum,
            y.data_ptr(),
            statistics.data_ptr(),
            native.thread_count(),
        )
        return y, statistics

    def backward(
        self,
        dy: Tensor,  # [N, C, H, W], any strides
        x: Tensor,
        statistics: Tensor,  # [3, C]
        weight: Tensor | None,
        bias: Tensor | None,
        needs: tuple[bool, bool, bool],
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """dx [N, C, H, W], dweight [C] and dbias [C], each where `needs` says so."""
        dy = as_format(dy, self.channels_last)
        dx = fresh(dy, self.x_shape, self.x_strides) if needs[0] else None
        dweight = statistics.new_empty(self.channels) if needs[1] else None
        dbias = statistics.new_empty(self.channels) if needs[2] else None
        native.module.batch_norm_act_backward(  # type: ignore[union-attr]
            self.native,
            x.data_ptr(),
            statistics.data_ptr(),
            0 if weight is None else weight.data_ptr(),
            0 if bias is None else bias.data_ptr(),
            dy.data_ptr(),
            0 if dx is None else dx.data_ptr(),
            0 if dweight is None else dweight.data_ptr(),
            0 if dbias is None else dbias.data_ptr(),
            native.thread_count(),
        )
        return dx, dweight, dbias


_launches: dict[Any, Launch] = {}


def launch_for(x_shape: tuple[int, ...], channels_last: bool, norm: Norm) -> Launch:
    """The cached launch of a problem; ValueError where the kernels don't take it."""
    key = (x_shape, channels_last, norm)
    launch = _launches.get(key)
    if launch is None:
        if len(_launches) >= _MAX_CACHED:
            _launches.clear()
        launch = _launches[key] = Launch(x_shape, channels_last, norm)
    return launch
