"""What the bound calls of a module depend on, looked at once for all of them.

While a fused forward runs without gradients nothing runs but PyTorch's layers and ours, none of
which changes a module or a weight: what holds as it begins holds for each of its calls.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import nn

from .. import native
from ..ops.conv_act_pool import interface
from .memory import Memory
from .steps import HOOKS

TRUST = "_cmf_trust"  # of a fused module
_MOST_CALLS = 4096
_lock = threading.Lock()  # of what threads learn
_is_any_autocast_enabled = torch._C._is_any_autocast_enabled
_len_torch_dispatch_stack = torch._C._len_torch_dispatch_stack


class _Run(threading.local):
    """What a thread is about: the forward that it runs."""

    trusted: frozenset[Any] = frozenset()  # calls of which all is known to hold
    seen: list[Any] | None = None  # those that looked themselves, and their modules


_run = _Run()


def settings_hold() -> bool:
    """Whether nothing outside modules and tensors keeps a call from being made by its pointers."""
    return not (
        _is_any_autocast_enabled() or _len_torch_dispatch_stack() or interface._transforms_active()
    )


class Watched:
    """A call that is kept, with what it depends on."""

    __slots__ = ("__weakref__", "guard", "memory")

    def __init__(self, guard: Any, memory: Memory) -> None:
        self.guard = guard
        self.memory = memory  # of each tensor that is read

    def holds(self, modules: tuple[Any, ...]) -> bool:
        """Whether all that the call was made of is what it was."""
        if self in _run.trusted:
            return True
        if not (settings_hold() and self.guard.holds(modules) and self.memory.holds()):
            return False
        if _run.seen is not None:
            _run.seen.append((self, modules))
        return True


class _Place:
    """Stands in for a module that is traced through: its attributes, without nn.Module's search."""

    def __init__(self, module: nn.Module, names: frozenset[str]) -> None:
        own = module.__dict__
        for store in (own["_buffers"], own["_parameters"], own):
            vars(self).update((name, store[name]) for name in names if name in store)
        for name, child in own["_modules"].items():
            vars(self)[name] = (
                _Place(child, names) if child is not None and child._modules else child
            )


class _Known(NamedTuple):
    """Calls of which all holds while the guard and the memories do."""

    calls: frozenset[Any]
    run: Callable[..., Any]  # the forward that makes them, of what stands in and its arguments
    place: _Place
    guard: Any
    objects: tuple[Any, ...]  # whom the guard watches, but the module itself
    memory: Memory

    def holds(self, module: nn.Module) -> bool:
        return settings_hold() and self.guard.holds((module, *self.objects)) and self.memory.holds()


class Trust:
    """What one module's calls depend on; nothing is known at first, and where something changed."""

    def __init__(self) -> None:
        self.known: _Known | None = None
        # Calls that were seen, and their modules: what is not used again before it changes is not
        # worth a look. Those that others have taken the place of are kept by nobody.
        self.candidates: WeakKeyDictionary[Any, tuple[Any, ...]] = WeakKeyDictionary()

    # Each copy of a module has to learn for itself.
    def __deepcopy__(self, memo: Any) -> Trust:
        return Trust()

    def __reduce__(self) -> Any:
        return Trust, ()

    def forward(self, module: nn.Module) -> Callable[..., Any] | None:
        """The forward whose calls may be made without a look at each; None where none is known."""
        known = self.known
        if known is None:
            return None
        if not known.holds(module):
            self.known, self.candidates = None, WeakKeyDictionary()
            return None

        def run(module: nn.Module, *args: Any) -> Any:
            y, seen = _with(known.calls, known.run, known.place, args)
            if seen:  # of other shapes: they are learnt with the next run
                with _lock:
                    self.candidates.update(seen)
                    self.known = None
            return y

        return run

    def learner(self, run: Callable[..., Any], paths: Any) -> Callable[..., Any]:
        """`run`, of calls that look for themselves: seen twice, they are trusted from then on.

        `paths`: of the modules that it is traced through, and the attributes that it reads.
        """

        def learn(module: nn.Module, *args: Any) -> Any:
            y, seen = _with(frozenset(), run, module, args)
            with _lock:
                self._remember(seen, module, run, paths)
            return y

        return learn

    def _remember(
        self, seen: list[Any], module: nn.Module, run: Callable[..., Any], paths: Any
    ) -> None:
        known = self.candidates
        if not all(call in known for call, _ in seen):
            if len(known) >= _MOST_CALLS:
                known.clear()
            known.update(seen)
            return
        self.known = _known(dict(known), module, run, paths) if seen else None
        if self.known is None:
            known.clear()


def _known(
    calls: dict[Any, tuple[Any, ...]], module: nn.Module, run: Callable[..., Any], paths: Any
) -> _Known | None:
    """One look for all the calls; None where something has changed that they depend on."""
    owners: dict[int, Any] = {}
    objects: dict[int, Any] = {}
    records: dict[Any, Any] = {}
    hashed: dict[int, Any] = {}
    read: dict[int, Any] = {}
    for part, record in _structure(module, paths):
        if not _fixed(record[3]):
            return None  # a list may change unseen
        owners.setdefault(id(part), (id(part), type(part), part.__dict__))
        objects.setdefault(id(part), part)
        records[id(record[0]), record[1], record[2]] = record
    for call, modules in calls.items():
        for part, owner in zip(modules, call.guard.owners, strict=True):
            owners.setdefault(id(part), owner)
            objects.setdefault(id(part), part)
        for record in call.guard.records:
            records.setdefault((id(record[0]), record[1], record[2]), record)
        hashed.update((id(part[0]), part) for part in call.memory.hashed)
        read.update((id(part[0]), part) for part in call.memory.read)
    guard = native.module.StateGuard(tuple(owners.values()), tuple(records.values()))  # type: ignore[union-attr]
    memory = Memory(list(hashed.values()), list(read.values()))
    place = _Place(module, frozenset(name for names in paths.values() for name in names))
    known = _Known(frozenset(calls), run, place, guard, tuple(objects.values())[1:], memory)
    # Each looks again now that all is written down: what has changed meanwhile is noticed.
    hold = all(call.guard.holds(modules) and call.memory.holds() for call, modules in calls.items())
    return known if hold and known.holds(module) else None


def _fixed(value: Any) -> bool:
    """Whether the value itself never changes, so that being the same object says all."""
    if isinstance(value, tuple):
        return all(map(_fixed, value))
    return not isinstance(value, (list, dict, set, bytearray))


def _with(
    trusted: frozenset[Any], run: Callable[..., Any], module: Any, args: tuple[Any, ...]
) -> tuple[Any, list[Any]]:
    """The result of `run`, and the calls that were made but not trusted."""
    seen: list[Any] = []
    before = _run.trusted, _run.seen
    _run.trusted, _run.seen = trusted, seen
    try:
        return run(module, *args), seen
    finally:
        _run.trusted, _run.seen = before


def _structure(module: nn.Module, paths: Any) -> Iterator[tuple[nn.Module, Any]]:
    """Records, as of a StateGuard, of all that decides which modules a traced forward calls; the
    module's own first."""
    for part in module.modules():
        own = part.__dict__
        children = own["_modules"]
        yield part, (children, "", "keys", tuple(children))
        for name, child in children.items():
            yield part, (children, name, "is", child)
        if part is module:
            continue
        for name in HOOKS:
            yield part, (own, name, "empty", None)
        yield part, (own, "forward", "absent", None)
    for path, names in paths.items():
        part = module.get_submodule(path)
        own = part.__dict__
        for store in (own, own["_parameters"], own["_buffers"]):
            for name in names:
                if name in store:
                    yield part, (store, name, "is", store[name])
