"""Looks through the code of a forward before torch.fx traces it.

A traced graph is the forward for one path through its Python code. It may stand in for the forward
only where that path can't change unseen: so the code's reads of attributes are listed (they become
part of the state for which the graph holds), and code with effects or hidden inputs (contexts,
random numbers, global variables, attributes that it sets) is left alone.
"""

from __future__ import annotations

import builtins
import dis
import inspect
import math
import operator
import os
import types
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import get_overridable_functions

_FORBIDDEN = {
    "STORE_ATTR": "sets an attribute",
    "DELETE_ATTR": "deletes an attribute",
    "STORE_GLOBAL": "sets a global variable",
    "DELETE_GLOBAL": "deletes a global variable",
    "IMPORT_NAME": "imports a module",
    "SETUP_WITH": "enters a context (with)",
    "BEFORE_WITH": "enters a context (with)",
    "LOAD_SPECIAL": "enters a context (with)",
    "SETUP_FINALLY": "handles exceptions (try)",
    "PUSH_EXC_INFO": "handles exceptions (try)",
    "GET_AWAITABLE": "awaits",
}
_LOAD_GLOBAL = ("LOAD_GLOBAL", "LOAD_NAME")
_LOAD_FREE = ("LOAD_DEREF", "LOAD_CLASSDEREF")
_LOAD_ATTRIBUTE = ("LOAD_ATTR", "LOAD_METHOD", "LOAD_SUPER_ATTR", "LOAD_SUPER_METHOD")

_BUILTIN_NAMES = (
    *("abs", "all", "any", "bool", "dict", "enumerate", "float", "getattr", "hasattr", "int"),
    *("isinstance", "len", "list", "map", "max", "min", "range", "reversed", "round", "set"),
    *("slice", "sorted", "str", "sum", "super", "tuple", "type", "zip"),
)
_BUILTINS = frozenset(getattr(builtins, name) for name in _BUILTIN_NAMES)
_ALLOWED_FUNCTIONS = (torch.jit.is_scripting, torch._assert)
_ALLOWED_MODULES = (math, operator)
_LIBRARY = os.path.dirname(os.__file__) + os.sep
# nn.Module's own methods that change the module
_CHANGING = frozenset(
    (
        *("add_module", "apply", "double", "eval", "half", "load_state_dict", "register_buffer"),
        *("register_module", "register_parameter", "requires_grad_", "to_empty", "train"),
        *("zero_grad", "__setattr__"),
    )
)
_SIMPLE = (
    type(None),
    bool,
    int,
    float,
    str,
    torch.dtype,
    torch.device,
    torch.memory_format,
)


@lru_cache(maxsize=1)
def _overridable() -> frozenset[Any]:
    found: set[Any] = set()
    for functions in get_overridable_functions().values():
        found.update(functions)
    return frozenset(found)


@dataclass
class Verdict:
    """What is known of a forward's code; it grows with the functions that are seen to run."""

    reason: str = ""  # why it is left alone; "" where it may be traced
    names: set[str] = field(default_factory=set)  # the attributes that it reads
    all_names: bool = False  # it reads attributes by computed names
    codes: set[types.CodeType] = field(default_factory=set)  # the functions looked through
    # functions that it may call, to be looked through when they run
    helpers: dict[types.CodeType, types.FunctionType] = field(default_factory=dict)
    # what must not run: code, or the id of a built-in function -> why
    suspects: dict[Any, str] = field(default_factory=dict)


class _Refused(Exception):
    pass


def simple(value: Any) -> Any:
    """A hashable stand-in for a plain value; raises TypeError for everything else."""
    if isinstance(value, _SIMPLE):
        return (type(value), value)
    if type(value) in (tuple, list, torch.Size):
        return (type(value), tuple(simple(v) for v in value))
    if type(value) is dict:
        return (dict, tuple((simple(k), simple(v)) for k, v in value.items()))
    if callable(value) and _records(value):
        return value
    raise TypeError(type(value).__name__)


def _records(function: Any) -> bool:
    """Whether a call of `function` with a traced value is recorded."""
    try:
        if function in _overridable():
            return True
    except TypeError:
        return False
    name = getattr(function, "__name__", "")
    if not name.startswith("_") and getattr(F, name, None) is function:
        return True
    if name.endswith("_") and not name.startswith("_"):  # torch.relu_, F.leaky_relu_
        return any(getattr(place, name, None) is function for place in (torch, F))
    return name.endswith("_like") and getattr(torch, name, None) is function


_verdicts: dict[type, Verdict] = {}


def scan(cls: type) -> Verdict:
    """What the code of `cls.forward` does."""
    verdict = _verdicts.get(cls)
    if verdict is None:
        verdict = _verdicts[cls] = Verdict()
        forward = getattr(cls, "forward", None)
        if forward is nn.Module.forward or not isinstance(forward, types.FunctionType):
            verdict.reason = "it has none in Python"
        else:
            verdict.reason = look_through(cls, forward, verdict)
    return verdict


def look_through(cls: type, function: types.FunctionType, verdict: Verdict) -> str:
    """Add what `function`, which runs in the forward of `cls`, does; why it may not, or ""."""
    name = function.__name__
    if hasattr(function, "__wrapped__"):
        return f"{name} is decorated"
    if function.__code__.co_flags & (inspect.CO_GENERATOR | inspect.CO_COROUTINE):
        return f"{name} is a generator or coroutine"
    try:
        for code in _codes(function.__code__):
            verdict.codes.add(code)
            for helper in _scan_code(cls, function, code, verdict):
                verdict.helpers[helper.__code__] = helper
    except _Refused as refused:
        return str(refused)
    return ""


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes(constant)


def _scan_code(
    cls: type, function: types.FunctionType, code: types.CodeType, verdict: Verdict
) -> list[types.FunctionType]:
    found: list[types.FunctionType] = []
    instructions = [i for i in dis.get_instructions(code) if i.opname != "CACHE"]
    where = f"{function.__name__}"
    uses_super = any(i.argval == "super" for i in instructions if i.opname in _LOAD_GLOBAL)
    skip_until = -1
    for place, instruction in enumerate(instructions):
        name = instruction.opname
        if name in _FORBIDDEN:
            raise _Refused(f"{where} {_FORBIDDEN[name]}")
        if name in _LOAD_GLOBAL or name in _LOAD_FREE:
            known, value = _lookup(function, instruction.argval, name in _LOAD_FREE)
            if not known:
                continue  # a local cell, or __class__ for super()
            text = str(instruction.argval)
            end = place + 1
            while end < len(instructions) and _is_namespace(value):
                following = instructions[end]
                if following.opname not in _LOAD_ATTRIBUTE:
                    break
                text += f".{following.argval}"
                try:
                    value = getattr(value, following.argval)
                except AttributeError:
                    raise _Refused(f"{where} uses {text}, which does not exist") from None
                end += 1
            skip_until = end
            if value in (getattr, hasattr):
                verdict.all_names = True
            helper = _judge(value, text, where, verdict)
            if helper is not None:
                found.append(helper)
        elif name in _LOAD_ATTRIBUTE and place >= skip_until:
            found += _attribute(cls, str(instruction.argval), uses_super, where, verdict)
    return found


def _lookup(function: types.FunctionType, name: str, free: bool) -> tuple[bool, Any]:
    if free:
        if name == "__class__" or name not in function.__code__.co_freevars:
            return False, None
        cell = (function.__closure__ or ())[function.__code__.co_freevars.index(name)]
        try:
            return True, cell.cell_contents
        except ValueError:
            return False, None
    if name in function.__globals__:
        return True, function.__globals__[name]
    if hasattr(builtins, name):
        return True, getattr(builtins, name)
    raise _Refused(f"{function.__name__} uses the global {name}, which does not exist")


def _is_namespace(value: Any) -> bool:
    return isinstance(value, types.ModuleType) or (
        isinstance(value, type) and value.__module__.startswith("torch")
    )


def _judge(value: Any, text: str, where: str, verdict: Verdict) -> types.FunctionType | None:
    """A helper to look through too, or None; raises where what is used is no good."""
    not_recorded = f"{where} uses {text}, which a traced graph does not record"
    if isinstance(value, types.ModuleType):
        raise _Refused(f"{where} passes the module {text} on")
    if isinstance(value, type):
        if value in _BUILTINS or issubclass(value, (nn.Module, torch.Tensor, BaseException)):
            return None
        if issubclass(value, tuple) and hasattr(value, "_fields"):
            return None
        codes = [
            member.__code__
            for base in value.__mro__
            for name in ("__init__", "__new__", "__enter__")
            if isinstance(member := base.__dict__.get(name), types.FunctionType)
        ]
        if not codes:
            raise _Refused(f"{where} uses the class {text}")
        verdict.suspects.update(dict.fromkeys(codes, not_recorded))
        return None
    if isinstance(value, _SIMPLE) or (
        isinstance(value, tuple) and all(isinstance(v, _SIMPLE) for v in value)
    ):
        if isinstance(value, (torch.dtype, torch.memory_format)) or text.isupper():
            return None
        raise _Refused(f"{where} reads the global variable {text}")
    try:
        if value in _BUILTINS or value in _ALLOWED_FUNCTIONS:
            return None
    except TypeError:
        raise _Refused(f"{where} reads the global variable {text}") from None
    if _records(value):
        return None
    name = getattr(value, "__name__", "")
    if any(getattr(place, name, None) is value for place in _ALLOWED_MODULES):
        return None
    if isinstance(value, types.FunctionType):
        if not value.__module__.startswith("torch.") and not _in_library(value):
            return value
        verdict.suspects[value.__code__] = not_recorded
    elif isinstance(value, (types.BuiltinFunctionType, types.BuiltinMethodType)):
        verdict.suspects[id(value)] = not_recorded
    else:
        raise _Refused(f"{where} reads the global variable {text}")
    return None


def _in_library(function: types.FunctionType) -> bool:
    """Whether the function is of Python's standard library (warnings.warn, random.choice)."""
    return function.__code__.co_filename.startswith(("<frozen", _LIBRARY)) and (
        "site-packages" not in function.__code__.co_filename
    )


def _attribute(
    cls: type, name: str, uses_super: bool, where: str, verdict: Verdict
) -> list[types.FunctionType]:
    """Functions of `cls` called `name`: forward may run them."""
    verdict.names.add(name)
    if name in ("__dict__", "__getattr__", "_modules"):
        verdict.all_names = True
    if name in _CHANGING and hasattr(nn.Module, name):
        raise _Refused(f"{where} calls {name}()")
    if name == "forward" and not uses_super:
        raise _Refused(f"{where} calls another module's forward directly")
    found = []
    for base in cls.__mro__:
        member = base.__dict__.get(name)
        if base in (object, nn.Module) or base.__module__.startswith("torch.nn."):
            continue
        if isinstance(member, property):
            member = member.fget
        elif isinstance(member, (staticmethod, classmethod)):
            member = member.__func__
        if isinstance(member, types.FunctionType):
            found.append(member)
    return found
