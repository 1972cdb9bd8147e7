"""Puts a program into a module, and takes it out: a subclass of the module's class runs it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .program import ORIGINAL, PROGRAM, Program, original_class
from .tracing import Untraceable
from .trust import TRUST, Trust

_classes: dict[type, type] = {}


def _fused_class(cls: Any) -> type:
    """`cls` with a forward that runs the module's program; one class for all its modules."""
    fused = _classes.get(cls)
    if fused is None:
        original = cls.forward

        def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
            program = self.__dict__.get(PROGRAM)
            if program is not None:
                if kwargs and len(args) + len(kwargs) == len(program.arguments):
                    missing = program.arguments[len(args) :]
                    if all(name in kwargs for name in missing):
                        args, kwargs = (*args, *(kwargs[name] for name in missing)), {}
                if not kwargs:
                    run = program.select(self, args)
                    if run is not None:
                        return run(self, *args)
            return original(self, *args, **kwargs)

        def __reduce_ex__(self: Any, protocol: Any) -> Any:
            reduced: Any = object.__reduce_ex__(self, max(protocol, 2))
            return (_rebuild, (cls, *reduced[1][1:]), *reduced[2:])

        forward.__wrapped__ = original  # type: ignore[attr-defined]
        forward.__doc__ = original.__doc__
        try:
            fused = type(cls)(
                cls.__name__,
                (cls,),
                {
                    "__module__": cls.__module__,
                    "__qualname__": cls.__qualname__,
                    "__doc__": cls.__doc__,
                    "forward": forward,
                    "__reduce_ex__": __reduce_ex__,
                    ORIGINAL: cls,
                },
            )
        except Exception as error:  # a metaclass or __init_subclass__ that wants no subclass
            raise Untraceable(f"{cls.__name__} can't be subclassed: {error}") from error
        _classes[cls] = fused
    return fused


def _rebuild(cls: Any, *arguments: Any) -> nn.Module:
    fused: Any = _fused_class(cls)
    return cls.__new__(fused, *arguments)


def why_not_class(module: nn.Module) -> str:
    """Why the forward of `module` can't be replaced; "" where it can."""
    cls = original_class(module)
    if "forward" in module.__dict__:
        return "its forward is replaced on the instance"
    if isinstance(module, torch.jit.ScriptModule):
        return "it is a ScriptModule"
    if isinstance(module, torch.fx.GraphModule):
        return "it is a GraphModule: fuse the model before it is traced"
    if cls.__reduce_ex__ is not object.__reduce_ex__ or cls.__reduce__ is not object.__reduce__:
        return f"{cls.__name__} pickles itself in its own way"
    if cls.__call__ is not nn.Module.__call__:
        return f"{cls.__name__} has a __call__ of its own"
    return ""


def install(module: nn.Module, program: Program) -> None:
    """Make `module` run `program`: its class becomes a subclass, and nothing else changes."""
    module.__class__ = _fused_class(original_class(module))
    module.__dict__[PROGRAM] = program
    module.__dict__[TRUST] = Trust()


def uninstall(module: nn.Module) -> None:
    """Undo `install`."""
    module.__class__ = original_class(module)
    module.__dict__.pop(PROGRAM, None)
    module.__dict__.pop(TRUST, None)
