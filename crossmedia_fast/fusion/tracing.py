"""Traces a module's forward with torch.fx, through the submodules that are named, not others."""

from __future__ import annotations

import gc
import inspect
import operator
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import CodeType
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, Proxy, Tracer

from .scanning import Verdict, look_through

CALLER = "crossmedia_fast_caller"  # Node.meta: the path of the module whose forward made the node

# While a model is traced its fused modules run as they were written.
active = False
_lock = threading.RLock()

_OWN_FOLDERS = (
    os.path.dirname(torch.__file__) + os.sep,
    os.path.dirname(os.path.dirname(__file__)) + os.sep,
)
_LIBRARY = os.path.dirname(os.__file__) + os.sep


class Untraceable(Exception):
    """Why a module can't be traced."""


class _Value(Proxy):
    """A traced tensor. `isinstance(value, Tensor)` holds, and `value += x` stays in place."""

    __class__ = Tensor  # type: ignore[assignment]

    def _in_place(self, name: str, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", getattr(operator, name), (self, other), {})

    def __iadd__(self, other: Any) -> Any:
        return self._in_place("iadd", other)

    def __isub__(self, other: Any) -> Any:
        return self._in_place("isub", other)

    def __imul__(self, other: Any) -> Any:
        return self._in_place("imul", other)

    def __itruediv__(self, other: Any) -> Any:
        return self._in_place("itruediv", other)

    def __ipow__(self, other: Any) -> Any:
        return self._in_place("ipow", other)


# What a tensor is asked that is no tensor.
_ASKED = frozenset(
    ("shape", "ndim", "dtype", "device", "layout", "size", "dim", "stride", "numel", "nelement")
)


def _is_size(node: Any) -> bool:
    """Whether the node is a size of a tensor or is computed from sizes alone.

    PyTorch's own functions in C++ read the memory of whatever says that it is a tensor where they
    expect a number.
    """
    if node.op == "call_method":
        return node.target in _ASKED
    if node.op != "call_function":
        return False
    if node.target is getattr:
        return node.args[1] in _ASKED
    if getattr(node.target, "__module__", "") not in ("_operator", "math", "builtins"):
        return False
    return bool(node.all_input_nodes) and all(map(_is_size, node.all_input_nodes))


def positional_names(forward: Callable[..., Any]) -> tuple[str, ...]:
    """The arguments of `forward` that have no default, without self."""
    names = []
    for parameter in list(inspect.signature(forward).parameters.values())[1:]:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise Untraceable(f"its forward takes {parameter}")
        if parameter.default is not parameter.empty:
            continue
        if parameter.kind is parameter.KEYWORD_ONLY:
            raise Untraceable(f"its forward needs the keyword {parameter.name}")
        names.append(parameter.name)
    if not names:
        raise Untraceable("its forward takes no tensor")
    return tuple(names)


class _Tracer(Tracer):
    def __init__(self, forward: Callable[..., Any], inline: frozenset[str]) -> None:
        super().__init__()
        self.forward = forward
        self.inline = inline
        self.callers = [""]

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> Any:
        # Arguments with defaults keep them: a call that gives others does not run what is traced.
        proxies = [
            self.create_proxy("placeholder", name, (), {})
            for name in positional_names(self.forward)
        ]
        return self.forward, [self.root, *proxies]

    def proxy(self, node: Any) -> Proxy:
        return Proxy(node, self) if _is_size(node) else _Value(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return module_qualified_name not in self.inline

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        path = self.path_of_module(m)
        if self.is_leaf_module(m, path):
            return super().call_module(m, forward, args, kwargs)
        self.callers.append(path)
        try:
            return super().call_module(m, forward, args, kwargs)
        finally:
            self.callers.pop()

    def create_node(self, *args: Any, **kwargs: Any) -> Any:
        node = super().create_node(*args, **kwargs)
        node.meta[CALLER] = self.callers[-1]
        return node

    def create_arg(self, a: Any) -> Any:
        if issubclass(type(a), Proxy):
            return a.node
        if isinstance(a, Tensor):
            known = [*self.root.parameters(), *self.root.buffers()]
            if not any(a is tensor for tensor in known):
                raise Untraceable("its forward makes a tensor that does not depend on its input")
        return super().create_arg(a)


@contextmanager
def _watched(verdicts: dict[type, Verdict]) -> Iterator[None]:
    """Looks through the functions that run; those outside PyTorch must be known to a verdict."""
    found: list[str] = []
    seen: set[CodeType] = set()
    suspects: dict[Any, str] = {}
    for verdict in verdicts.values():
        suspects.update(verdict.suspects)

    def watch(frame: Any, event: str, argument: Any) -> None:
        if event == "c_call":
            if id(argument) in suspects:
                found.append(suspects[id(argument)])
        elif event == "call" and frame.f_code not in seen:
            seen.add(frame.f_code)
            found.extend(_why_not_code(frame.f_code, verdicts))
            for verdict in verdicts.values():  # of a function that was just looked through
                suspects.update(verdict.suspects)

    before = sys.getprofile()
    collecting = gc.isenabled()
    gc.disable()  # what finalisers call is none of the forward's doing
    sys.setprofile(watch)
    try:
        yield
    finally:
        sys.setprofile(before)
        if collecting:
            gc.enable()
        if found:
            raise Untraceable(f"its forward: {found[0]}")


def _why_not_code(code: CodeType, verdicts: dict[type, Verdict]) -> Iterator[str]:
    known = False
    for cls, verdict in verdicts.items():
        if code in verdict.codes:
            known = True
        elif code in verdict.suspects:
            yield verdict.suspects[code]
        elif code in verdict.helpers:
            known = True
            reason = look_through(cls, verdict.helpers[code], verdict)
            if reason:
                yield reason
    name = code.co_filename
    if known or name.startswith(("<frozen", "<string>", *_OWN_FOLDERS)):
        return
    if not name.startswith(_LIBRARY) or "site-packages" in name:
        yield f"it calls {getattr(code, 'co_qualname', code.co_name)}, which is not looked through"


def trace(
    module: nn.Module,
    forward: Callable[..., Any],
    inline: frozenset[str],
    verdicts: dict[type, Verdict],
) -> Graph:
    """The graph of `module`'s `forward`, with the submodules at `inline` traced through.

    `verdicts`: of the classes that are traced through, by class; they learn of the functions that
    run. Raises Untraceable where torch.fx can't follow.
    """
    global active
    tracer = _Tracer(forward, inline)
    with _lock:
        before, active = active, True
        try:
            with _watched(verdicts):
                return tracer.trace(module)
        except Untraceable:
            raise
        except Exception as error:  # whatever the model's own code raises when given proxies
            text = str(error).strip().split("\n")[0]
            raise Untraceable(
                f"torch.fx can't trace its forward: {type(error).__name__}: {text}"
            ) from None
        finally:
            active = before
