"""One launch of a Triton kernel as plain data: to run it, to put it in a graph, to compile it.

The same object serves the eager call, the trace of torch.compile, and the tests that compile each
kernel for GPUs that aren't there; so what they see is what runs.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from . import triton_support

# From this many elements offsets are computed in 64 bits. Half of what 32 bits hold: a block may
# begin below the end and reach past it.
FIRST_WIDE = 2**30

_POINTERS = {
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.float32: "*fp32",
    torch.float64: "*fp64",
    torch.uint8: "*u8",
    torch.int32: "*i32",
}


@dataclass
class KernelCall:
    """A kernel, its grid and its arguments by name."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]  # tensors, integers, and tuples of either
    constants: dict[str, Any]  # the kernel's tl.constexpr parameters
    num_warps: int = 4
    num_stages: int = 1
    outputs: tuple[Tensor, ...] = field(default=())

    def __call__(self) -> None:
        """Launch, or put the launch in the graph that is being traced."""
        if 0 in self.grid:
            return
        if triton_support.interpreting():
            self.kernel[self.grid](**self.arguments, **self.constants)
            return
        with _on_device_of(self.arguments):
            torch.library.wrap_triton(self.kernel)[self.grid](
                **self.arguments,
                **self.constants,
                num_warps=self.num_warps,
                num_stages=self.num_stages,
            )

    def compile(self, target: Any) -> Any:
        """The kernel compiled for `target` (a GPUTarget), as this launch would have it."""
        import triton
        from triton.compiler import ASTSource

        signature: dict[str, Any] = {}
        constants: dict[Any, Any] = {}
        attributes: dict[Any, Any] = {}
        for position, name in enumerate(self.kernel.arg_names):
            if name in self.constants:
                signature[name], constants[name] = "constexpr", self.constants[name]
                continue
            value = self.arguments[name]
            if isinstance(value, tuple):
                signature[name] = tuple(_type_of(x) for x in value)
                for index, x in enumerate(value):
                    if _divisible(x):
                        attributes[position, index] = [["tt.divisibility", 16]]
            elif isinstance(value, int) and value == 1:
                signature[name], constants[name] = "constexpr", 1
            else:
                signature[name] = _type_of(value)
                if _divisible(value):
                    attributes[position,] = [["tt.divisibility", 16]]
        source = ASTSource(self.kernel, signature, constants, attributes)
        options = {"num_warps": self.num_warps, "num_stages": self.num_stages}
        return triton.compile(source, target=target, options=options)


def is_wide(*counts: int) -> bool:
    """Whether a tensor of one of these element counts needs offsets in 64 bits."""
    return max(counts) >= FIRST_WIDE


def _type_of(value: Any) -> str:
    if isinstance(value, Tensor):
        return _POINTERS[value.dtype]
    if isinstance(value, int):
        return "i32" if -(2**31) <= value < 2**31 else "i64"
    return "fp32"


def _divisible(value: Any) -> bool:
    """PyTorch's allocator aligns to more than 16 bytes; Triton looks at each pointer again."""
    return isinstance(value, Tensor) or (isinstance(value, int) and value % 16 == 0)


def _on_device_of(arguments: dict[str, Any]) -> Any:
    """Triton launches on the current device: make that the tensors' own."""
    for value in arguments.values():
        tensor = value[0] if isinstance(value, tuple) else value
        if isinstance(tensor, Tensor):
            if tensor.is_cuda and tensor.get_device() != _current_device():
                return torch.cuda.device(tensor.device)
            break
    return contextlib.nullcontext()


def _current_device() -> int:
    return torch.cuda.current_device() if torch.cuda.is_initialized() else 0
