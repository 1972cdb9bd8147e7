"""The graph of a module as the code that runs, and the state of the module for which it holds."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph
from torch.nn.modules import module as _hooks

from .. import native
from . import tracing
from .chains import rewrite_chain
from .gating import rewrite_gates
from .joining import rewrite_concatenations
from .linear import LinearRegion, find_linears
from .matching import find, may_change, rewrite
from .normalizing import NormRegion, find_norms
from .pooling import PoolRegion, find_pools
from .prologue import rewrite_prologues
from .references import pack, unpack
from .region import Region
from .report import KINDS
from .residual import rewrite_residuals
from .scanning import scan, simple
from .steps import hooked
from .transposed import TransposedRegion, find_transposed
from .trust import TRUST, Trust

ORIGINAL = "_cmf_original"  # of a fused class: the class that it stands for
_get_tracing_state = torch._C._get_tracing_state  # of torch.jit.trace
PROGRAM = "_cmf_program"  # of a fused module


def original_class(module: nn.Module) -> Any:
    """The class of `module` before it was fused."""
    return getattr(type(module), ORIGINAL, type(module))


# What is looked for once the convolutions have theirs: its kind in the report, how it is found,
# what runs in its stead, and at which of its nodes.
_OTHERS: tuple[tuple[str, Callable[..., Any], Callable[..., Any], int], ...] = (
    (
        "pools",
        find_pools,
        lambda name, pool, get: PoolRegion(name, pool.steps, may_change(pool, get)),
        -1,
    ),
    ("transposed", find_transposed, lambda name, conv, _: TransposedRegion(name, conv.steps), 0),
    ("linears", find_linears, lambda name, *_: LinearRegion(name), 0),
    ("norms", find_norms, lambda name, norm, _: NormRegion(name, norm.steps), 0),
)


class Variant:
    """A graph's code, for one state of the modules that it was traced through."""

    def __init__(self, source: str, names: dict[str, Any], closed: bool) -> None:
        self.source = source
        self.names = names
        self.closed = closed  # whether all that it calls is PyTorch's and ours
        self.run: Callable[..., Any] = self._compile()

    def _compile(self) -> Callable[..., Any]:
        scope = dict(self.names)
        exec(compile(self.source, "<crossmedia_fast: fused forward>", "exec"), scope)
        return scope["forward"]

    def __reduce__(self) -> Any:
        names = {name: pack(value) for name, value in self.names.items()}
        return _variant, (self.source, names, self.closed)


def _variant(source: str, names: dict[str, Any], closed: bool) -> Variant:
    return Variant(source, {name: unpack(value) for name, value in names.items()}, closed)


def code_of(graph: Graph, module_at: Callable[[str], nn.Module]) -> Variant:
    """The graph as a function of the module and its arguments."""
    called = [module_at(str(node.target)) for node in graph.nodes if node.op == "call_module"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of modules read by get_attr
        code = graph.python_code("self")
    return Variant(code.src, dict(code.globals), all(map(_is_layer, called)))


def _is_layer(module: nn.Module) -> bool:
    """Whether the module is one of PyTorch's own layers, which change no other module."""
    return type(module).__module__.startswith("torch.nn.modules.") and not module._modules


class Program:
    """How a fused module runs: its variants by state, and the state's recipe.

    It holds no module and no tensor, so that copies of the module may share it.
    """

    def __init__(
        self,
        arguments: tuple[str, ...],
        names: dict[str, tuple[str, ...]],
    ) -> None:
        self.arguments = arguments  # of forward, those without defaults
        # path of each module traced through, "" the module itself -> the attributes that are read
        self.names = names
        self.fused: set[tuple[str, str]] = set()  # path and pattern, of all variants
        # the same of what is no convolution's match, by kind, in order
        self.others: dict[str, dict[tuple[str, str], None]] = {kind: {} for kind in KINDS}
        self.variants: dict[Any, Variant] = {}

    def __deepcopy__(self, memo: Any) -> Program:
        return self

    def state(self, module: nn.Module) -> Any:
        """Everything that the traced path through the Python code depends on, hashable."""
        found: list[Any] = []
        for path, names in self.names.items():
            part: Any = module
            for name in path.split(".") if path else ():
                part = part._modules.get(name)
                if part is None:
                    return None
            if path and hooked(part):
                return None
            found += _state_of(part, names)
        return tuple(found)

    def select(self, module: nn.Module, args: tuple[Any, ...]) -> Callable[..., Any] | None:
        """What to run, of the module and its arguments, or None where the forward as written must
        run."""
        if tracing.active or len(args) != len(self.arguments):
            return None
        for argument in args:
            if not isinstance(argument, Tensor):
                return None
        trust: Trust | None = None
        if torch.compiler.is_compiling():
            if _is_exporting():
                return None
        elif _get_tracing_state() is not None or (
            _hooks._global_forward_hooks
            or _hooks._global_forward_pre_hooks
            or _hooks._global_backward_hooks
            or _hooks._global_backward_pre_hooks
        ):
            return None
        elif not torch.is_grad_enabled():
            trust = module.__dict__.get(TRUST)
            run = None if trust is None else trust.forward(module)
            if run is not None:
                return run
        try:
            variant = self.variants.get(self.state(module))
        except TypeError:
            return None
        if variant is None:
            return None
        if trust is None or not variant.closed or native.module is None:
            return variant.run
        return trust.learner(variant.run, self.names)


def _is_exporting() -> bool:
    if hasattr(torch.compiler, "is_exporting"):
        return torch.compiler.is_exporting()
    trace = getattr(torch.export, "_trace", None)  # before PyTorch 2.7; there once it has exported
    return getattr(trace, "_EXPORT_FLAGS", None) is not None


def _state_of(part: nn.Module, names: tuple[str, ...]) -> list[Any]:
    own = part.__dict__
    modules, parameters, buffers = own["_modules"], own["_parameters"], own["_buffers"]
    found: list[Any] = [original_class(part), *modules]
    for name in names:
        if name in own:
            found.append(simple(own[name]))
        elif name in modules:
            found.append(modules[name] is None)
        elif name in parameters:
            found.append(parameters[name] is None)
        elif name in buffers:
            found.append(buffers[name] is None)
    return found


def _exact_names(module: nn.Module) -> tuple[str, ...]:
    """The attributes of the module that its forward reads."""
    verdict = scan(original_class(module))
    own = module.__dict__
    stores = (own, own["_modules"], own["_parameters"], own["_buffers"])
    known = {name for store in stores for name in store}
    if verdict.all_names:
        private = {n for n in nn.Module().__dict__ if n != "training"} | {PROGRAM, TRUST}
        return tuple(sorted(known - private))
    return tuple(sorted(verdict.names & known))


def make_program(
    module: nn.Module,
    inline: frozenset[str],
    accepted: Callable[[str, str, bool], bool],
    by_mode: bool,
) -> Program:
    """The program of `module` that fuses the matches that `accepted` (path, pattern, training)
    takes; `by_mode`: whether it takes others in training.

    Traced as the module is now, and as it is when all of it trains, and when none of it does.
    """
    parts = {path: module.get_submodule(path) for path in ("", *sorted(inline))}
    parts.update(_holders(module, inline))
    arguments = tracing.positional_names(original_class(module).forward)
    while True:
        names = {path: _exact_names(part) for path, part in parts.items()}
        read = dict(names)
        if by_mode and "training" not in read[""]:
            read[""] = (*read[""], "training")
        program = Program(arguments, read)
        _add_variants(program, module, parts, inline, accepted)
        # a mode may run functions, and with them read attributes, that the one before did not
        if names == {path: _exact_names(part) for path, part in parts.items()}:
            return program


def _holders(module: nn.Module, inline: frozenset[str]) -> dict[str, nn.Module]:
    """The ModuleLists and ModuleDicts whose members the traced forwards may call."""
    found: dict[str, nn.Module] = {}
    for path, part in module.named_modules():
        parent = path.rpartition(".")[0]
        known = parent in inline or parent in found or not parent
        if path and known and type(part).forward is nn.Module.forward:
            found[path] = part
    return found


def _add_variants(
    program: Program,
    module: nn.Module,
    parts: dict[str, nn.Module],
    inline: frozenset[str],
    accepted: Callable[[str, str, bool], bool],
) -> None:
    modes: list[bool | None] = [None]
    if any("training" in read for read in program.names.values()):
        modes += [True, False]
    before = [part.training for part in parts.values()]
    for mode in modes:
        try:
            if mode is not None:
                for part in parts.values():
                    part.__dict__["training"] = mode
            _add_variant(program, module, inline, accepted)
        except tracing.Untraceable:
            if mode is None:
                raise
        finally:
            for part, training in zip(parts.values(), before, strict=True):
                part.__dict__["training"] = training


def _add_variant(
    program: Program,
    module: nn.Module,
    inline: frozenset[str],
    accepted: Callable[[str, str, bool], bool],
) -> None:
    state = program.state(module)
    if state is None or state in program.variants:
        return
    graph = graph_of(module, inline)
    matches, _ = find(graph, module.get_submodule)
    number = 0
    for match in matches:
        if accepted(match.path, match.pattern, module.training):
            shielded = may_change(match, module.get_submodule)
            rewrite(graph, match, Region(f"fused_{number}", match.steps, shielded))
            program.fused.add((match.path, match.pattern))
            number += 1
    for prologue in rewrite_prologues(graph, module.get_submodule):
        program.others["norms"][prologue.path, prologue.pattern] = None
    rewrite_gates(graph, module.get_submodule)
    for residual in rewrite_residuals(graph, module.get_submodule):
        program.others["residuals"][residual.path, residual.pattern] = None
    for kind, find_chains, make_region, at in _OTHERS:
        for chain in find_chains(graph, module.get_submodule):
            region = make_region(f"fused_{number}", chain, module.get_submodule)
            rewrite_chain(graph, chain, region, chain.nodes[at])
            program.others[kind][chain.path, chain.pattern] = None
            number += 1
    if number:
        names = (f"joined_{place}" for place in count())
        rewrite_concatenations(graph, lambda: next(names))
        program.variants[state] = code_of(graph, module.get_submodule)


def graph_of(module: nn.Module, inline: frozenset[str]) -> Graph:
    """The module's graph through the submodules at `inline`; Untraceable where there is none."""
    parts = [module, *(module.get_submodule(path) for path in inline)]
    verdicts = {original_class(part): scan(original_class(part)) for part in parts}
    for verdict in verdicts.values():
        if verdict.reason:
            raise tracing.Untraceable(f"its forward: {verdict.reason}")
    before = _states(parts)
    graph = tracing.trace(module, original_class(module).forward, inline, verdicts)
    after = _states(parts)
    if any(after[key] != value for key, value in before.items()):
        raise tracing.Untraceable("its forward changes what it reads")
    return graph


def _states(parts: list[nn.Module]) -> dict[Any, Any]:
    """The values of all the attributes that the forwards read."""
    found = {}
    for part in parts:
        for name in _exact_names(part):
            try:
                found[id(part), name] = _state_of(part, (name,))
            except TypeError as error:
                raise tracing.Untraceable(
                    f"its forward reads self.{name}, of type {error}"
                ) from None
    return found
