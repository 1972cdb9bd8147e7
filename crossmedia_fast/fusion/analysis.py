"""Finds what may be fused in a model: traces its modules, children before parents."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.fx import GraphModule

from .gating import gate_of
from .installing import why_not_class
from .joining import concatenated
from .linear import find_linears
from .matching import Match, find, why_not_conv
from .normalizing import find_norms
from .pooling import find_pools, tail_of
from .program import graph_of, original_class
from .report import FusionRow
from .residual import total_of
from .scanning import scan
from .steps import hooked
from .tracing import CALLER, Untraceable
from .transposed import find_transposed


@dataclass
class Found:
    """What tracing found in a model."""

    owned: dict[str, list[Match]] = field(default_factory=dict)  # module path -> its own matches
    inline: dict[str, frozenset[str]] = field(default_factory=dict)  # of those, traced through
    # paths of modules whose forwards call other layers that are ours: poolings, transposed
    # convolutions, BatchNorms, fully connected layers
    others: set[str] = field(default_factory=set)
    # paths of modules that no other is traced through with -> all below that has anything of ours
    whole: dict[str, frozenset[str]] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)  # convolution path -> why left alone
    refused: dict[str, str] = field(default_factory=dict)  # module path -> why not traced


def join(*paths: str) -> str:
    return ".".join(path for path in paths if path)


def _prefixes(path: str) -> list[str]:
    parts = path.split(".")
    return [".".join(parts[: n + 1]) for n in range(len(parts))]


def _with_parents(module: nn.Module, paths: list[list[str]]) -> frozenset[str]:
    """The paths and their parents, as far as they are traced through."""
    found = {p for names in paths for name in names if name for p in _prefixes(name)}
    return frozenset(p for p in found if not _holds(module.get_submodule(p)))


def _relative(path: str, parent: str) -> str:
    """`path` as `parent` has it; "" where it is not below."""
    if not parent:
        return path
    return path[len(parent) + 1 :] if path.startswith(f"{parent}.") else ""


def _common(paths: list[str]) -> str:
    """The deepest module in which all of `paths` are."""
    split = [path.split(".") if path else [] for path in paths]
    common = []
    for names in zip(*split, strict=False):
        if len(set(names)) > 1:
            break
        common.append(names[0])
    return ".".join(common)


def _is_layer(module: nn.Module) -> bool:
    """Whether the module is one of PyTorch's own layers, which are not looked into."""
    cls = original_class(module)
    if cls is nn.Sequential or isinstance(module, GraphModule):
        return False
    return cls.__module__.startswith("torch.")


def _why_not_traced(module: nn.Module) -> str:
    reason = why_not_class(module)
    if reason:
        return reason
    verdict = scan(original_class(module))
    return f"{original_class(module).__name__}.forward: {verdict.reason}" if verdict.reason else ""


def analyse(model: nn.Module) -> Found:
    found = Found()
    modules = dict(model.named_modules())
    traced: set[str] = set()  # that may be traced through
    for path, module in reversed(list(modules.items())):  # children before parents
        if _is_layer(module) or not any(True for _ in module.children()):
            continue
        if type(module).forward is nn.Module.forward:
            continue  # a ModuleList or ModuleDict: its members are called by others
        reason = _why_not_traced(module)
        if reason:
            found.refused[path] = reason
            continue
        inline = _inlined(path, module, traced)
        try:
            graph = _graph(module, inline)
        except Untraceable as error:
            found.refused[path] = f"{original_class(module).__name__}: {error}"
            continue
        if not hooked(module):
            traced.add(path)
        matches, rest = find(graph, module.get_submodule)
        # a concatenation of the module's own takes in what its submodules end with
        last = {match.nodes[-1] for match in matches}
        joined = {
            part
            for node, _, parts in concatenated(graph, last.__contains__)
            if not node.meta[CALLER]
            for part in parts
        }
        callers = {m.nodes[0]: _callers(m, module) for m in matches}
        own = [m for m in matches if not _common(callers[m.nodes[0]]) or m.nodes[-1] in joined]
        for _, conv, note in rest:
            found.notes[join(path, conv)] = note
        for match in matches:
            if match.note:
                found.notes[join(path, match.path)] = match.note
        taken = {n for m in matches for n in m.nodes}
        others: list[Any] = [
            *find_pools(graph, module.get_submodule, taken),
            *find_transposed(graph, module.get_submodule),
        ]
        taken.update(n for other in others for n in other.nodes)
        others += find_norms(graph, module.get_submodule, taken)
        others += find_linears(graph, module.get_submodule)
        inside = [*(callers[m.nodes[0]] for m in matches), *(other.callers() for other in others)]
        if inside:
            below = _with_parents(module, inside)
            inner = [name for name in found.whole if _relative(name, path) in below]
            for name in inner:
                del found.whole[name]
            found.whole[path] = below
        others = [other for other in others if not _common(other.callers())]
        if others or any(tail_of(match.steps) > 0 or _trains(match) for match in own):
            found.others.add(path)
        if own:
            found.owned[path] = own
        if own or others:
            called = [*(callers[m.nodes[0]] for m in own), *(p.callers() for p in others)]
            found.inline[path] = _with_parents(module, called)
    return found


def _callers(match: Match, module: nn.Module) -> list[str]:
    """The paths of the modules that make the match and what else a call of it takes in: a product
    in front of a 1×1 convolution, a sum behind any."""
    beside = (gate_of(match, module.get_submodule), total_of(match))
    return [*match.callers(), *(node.meta[CALLER] for node in beside if node is not None)]


def _trains(match: Match) -> bool:
    """Whether a part of the match runs as one pass where its convolution is not fused."""
    return any(step.kind == "norm" for step in match.steps)


def _inlined(path: str, module: nn.Module, traced: set[str]) -> frozenset[str]:
    """The submodules to trace through: all that may be, under parents that may be."""
    inline: set[str] = set()
    for name, part in module.named_modules():
        if not name:
            continue
        parents = _prefixes(name)[:-1]
        open_ = all(p in inline or _holds(module.get_submodule(p)) for p in parents)
        if open_ and join(path, name) in traced and not hooked(part):
            inline.add(name)
    return frozenset(inline)


def _holds(module: nn.Module) -> bool:
    return type(module).forward is nn.Module.forward


def _graph(module: nn.Module, inline: frozenset[str]) -> Any:
    try:
        return graph_of(module, inline)
    except Untraceable:
        if not inline:
            raise
        return graph_of(module, frozenset())  # its own code alone


def make_rows(
    model: nn.Module,
    found: Found,
    why_not: dict[tuple[str, str], str],
    notes: dict[tuple[str, str], str],
) -> list[FusionRow]:
    """A row a convolution; `why_not`: (path, pattern) -> why a match is not fused, `notes`: what is
    to be known of one that is."""
    rows = []
    best: dict[str, Match] = {}
    # parents see more of what follows than children
    for owner in sorted(found.owned, key=lambda path: (path.count(".") + bool(path), path)):
        for match in found.owned[owner]:
            best.setdefault(join(owner, match.path), match)
    convolutions = {p: m for p, m in model.named_modules() if isinstance(m, nn.Conv2d)}
    calls = dict.fromkeys((path for path in best if path not in convolutions), None)
    for path, module in (*convolutions.items(), *calls.items()):
        if module is not None and path not in best:
            rows.append(
                FusionRow(
                    path, type(module).__name__, False, _left_alone(model, path, module, found)
                )
            )
            continue
        match = best[path]
        reason = why_not.get((path, match.pattern), "")
        fused = not reason
        if fused:
            reason = _note(match, found.notes.get(path, ""), notes.get((path, match.pattern), ""))
        rows.append(FusionRow(path, match.pattern, fused, reason))
    return rows


def _note(match: Match, end: str, more: str) -> str:
    notes = [more] if more else []
    if any(step.kind == "norm" for step in match.steps):
        notes.append("folded in eval mode; a BatchNorm in training mode runs behind it")
    if any(step.kind == "dropout" for step in match.steps):
        notes.append("past the Dropout in eval mode alone")
    ordinary = (
        "nothing follows",
        "is none of the layers",
        "is no operation",
        "takes another value",
    )
    if end and (len(match.steps) == 1 or not any(text in end for text in ordinary)):
        notes.append(f"ends here: {end}")
    return "; ".join(notes)


def _left_alone(model: nn.Module, path: str, module: nn.Module, found: Found) -> str:
    reason = why_not_conv(module)
    if reason:
        return reason
    if path in found.notes:
        return found.notes[path]
    parents = ["", *_prefixes(path)[:-1]] if path else [""]
    for parent in reversed(parents):
        if parent in found.refused:
            return found.refused[parent]
    return "no forward that could be traced calls it" if path else "no module calls it"
