"""fuse, unfuse and fusion_report."""

from __future__ import annotations

from contextlib import suppress
from itertools import takewhile
from typing import Any, TypeVar

from torch import nn

from ..backends import backends
from .analysis import analyse, join, make_rows
from .installing import install, uninstall
from .program import PROGRAM, Program, make_program
from .region import device_has_kernels
from .report import KINDS, FusionReport, FusionRow, Named
from .shapes import as_call, declined, run_shapes
from .tracing import Untraceable

_Model = TypeVar("_Model", bound=nn.Module)
_REPORT = "_cmf_report"


def fuse(model: _Model, example_inputs: Any = None) -> _Model:
    r"""Make the convolutions of `model` run fused with what follows them.

    Found, wherever they follow each other (in ``nn.Sequential``, in nested blocks, in functional
    calls and methods of a ``forward``), and run as one :func:`conv_act_pool2d`:

    1. ``nn.Conv2d``, and ``F.conv2d`` with parameters of the module; also where nothing of the
       following follows;
    2. ``nn.BatchNorm2d`` in eval mode, and constants added, subtracted, multiplied or divided by:
       folded into weights and bias at the time of the call;
    3. an activation; ``nn.Dropout`` in eval mode;
    4. max or average pooling (adaptive pooling where it divides evenly), also before an
       activation that never decreases.

    Pooling that follows no convolution, or one behind a BatchNorm that trains, runs as one pass
    with the activation before it, where that is faster. ``nn.ConvTranspose2d`` in float32 runs by
    the kernels of the convolution whose adjoint it is, its gradients too; without gradients a
    BatchNorm in eval mode is folded into it, and bias and activation are one pass. A
    ``nn.BatchNorm2d`` that trains, in float32 on the CPU, is one call each way with the activation
    behind it, and keeps its input alone for backward; in eval mode and before a 1×1 convolution it
    is done, with its ReLU, where that packs its input. A large ``nn.Linear`` of few rows reads its
    weights once.

    Equivalent to: ``model``, up to rounding.

    **In place**: the model that is returned is the one that was given. No module, parameter,
    buffer, hook or mode of it changes, nor any key of its ``state_dict``; a module whose forward
    contains a match gets a subclass of its class, of the same name, that runs the fused code. What
    was not true of the modules when they were fused (hooks added later, layers replaced,
    BatchNorm set to training, attributes changed) is seen at each call, which then runs the layers
    as they are. ``torch.export`` and ``torch.jit.trace`` see the model as it was.

    Args:
        model: any module.
        example_inputs: a tensor, a tuple of the model's arguments or a dict of its keywords. Only
            what the plan (:func:`explain`) runs natively for these shapes, dtype and layout is
            fused, in eval and in training mode each by its own plan. None: all that is found, and
            the plan decides at each call.

    Returns:
        `model`.

    Raises:
        TypeError: `model` is no module, or `example_inputs` none of the above.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if example_inputs is not None:
        as_call(example_inputs)
    unfuse(model)
    found = analyse(model)
    inputs = None if example_inputs is None else run_shapes(model, example_inputs)
    why_not: dict[tuple[str, str], str] = {}
    notes: dict[tuple[str, str], str] = {}
    modes: dict[str, dict[str, tuple[bool, bool]]] = {}  # path -> pattern -> in eval, in training
    for owner, matches in found.owned.items():
        for match in matches:
            path = join(owner, match.path)
            conv: Any = match.conv_of(model.get_submodule(owner))
            if inputs is None:
                reasons = (_unknown_shapes(conv),) * 2
            else:
                seen = inputs.get(path, [])
                trained = tuple(takewhile(lambda step: not step.modal, match.steps))
                reasons = (
                    declined(conv, match.steps[1:], seen, training=False),
                    declined(conv, trained[1:], seen, training=True),
                )
            key = path, match.pattern
            if all(reasons):
                why_not[key] = reasons[model.training]
                continue
            modes.setdefault(path, {})[match.pattern] = (not reasons[0], not reasons[1])
            for reason, mode in zip(reasons, ("training", "eval"), strict=True):
                if reason:
                    notes[key] = f"in {mode} mode alone, else: {reason}"
    others: Named = {kind: {} for kind in KINDS}
    for owner in dict.fromkeys((*found.owned, *sorted(found.others))):
        matches = found.owned.get(owner, [])
        own = [modes.get(join(owner, m.path), {}).get(m.pattern) for m in matches]
        if not any(own) and (owner not in found.others or not device_has_kernels("cpu")):
            continue
        try:
            program = _run_as(model, owner, found.inline[owner], modes)
        except (Untraceable, TypeError) as error:
            for match in matches:
                why_not[join(owner, match.path), match.pattern] = str(error)
            continue
        for kind, chains in program.others.items():
            for name, pattern in chains:
                known = others[kind].setdefault(join(owner, name), pattern)
                others[kind][join(owner, name)] = max(known, pattern, key=len)
    for owner, below in found.whole.items():
        wider = below - found.inline.get(owner, frozenset())
        if wider and (modes or device_has_kernels("cpu")):
            # where it can't be traced as a whole its parts run as they are
            with suppress(Untraceable, TypeError):
                _run_as(model, owner, below, modes)
    for owner, matches in found.owned.items():
        for match in matches:
            if (join(owner, match.path), match.pattern) not in why_not:
                for node in match.nodes:
                    for kind in ("pools", "norms"):
                        others[kind].pop(join(owner, str(node.target)), None)
    rows = make_rows(model, found, why_not, notes)
    model.__dict__[_REPORT] = FusionReport(rows, others)
    return model


def _run_as(
    model: nn.Module,
    owner: str,
    inline: frozenset[str],
    modes: dict[str, dict[str, tuple[bool, bool]]],
) -> Program:
    """Let the module at `owner` run a program, traced through those at `inline`."""
    module = model.get_submodule(owner)

    def accepted(path: str, pattern: str, training: bool) -> bool:
        # in another mode of the model a match may end sooner or later (F.dropout)
        known = modes.get(join(owner, path), {})
        return any(
            ok[training] and (p.startswith(pattern) or pattern.startswith(p))
            for p, ok in known.items()
        )

    by_mode = any(
        ok[0] != ok[1]
        for path, known in modes.items()
        if not owner or path.startswith(f"{owner}.")
        for ok in known.values()
    )
    program = make_program(module, inline, accepted, by_mode)
    if program.variants:
        install(module, program)
    return program


def _unknown_shapes(conv: nn.Conv2d) -> str:
    """Why no input could make this convolution faster; "" where one could."""
    device = conv.weight.device.type
    if device != "meta" and not device_has_kernels(device):
        reasons = "; ".join(f"{row.name}: {row.reason}" for row in backends() if row.reason)
        return f"no compiled backend runs on {device} here ({reasons})"
    return ""


def unfuse(model: _Model) -> _Model:
    """Undo :func:`fuse`, in place: every module has its own class and forward again."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    for module in model.modules():
        if PROGRAM in module.__dict__:
            uninstall(module)
        module.__dict__.pop(_REPORT, None)
    return model


def fusion_report(model: nn.Module) -> FusionReport:
    """A row for each convolution of `model`: path, pattern, whether it is fused, and why not; in
    its ``residuals`` path and pattern of the convolutions whose pass adds another tensor to them,
    in its ``pools`` of the poolings that run as one pass without a convolution, in its
    ``transposed`` of the transposed convolutions that run by our kernels where those win, in its
    ``norms`` of the BatchNorms without a convolution, in its ``linears`` of the fully connected
    layers whose weights are read once.

    ``print`` shows a table. For a model that was not fused, the rows say what :func:`fuse` would
    look at, none of them fused.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    rows: list[FusionRow] = []
    others: Named = {kind: {} for kind in KINDS}
    covered: list[str] = []
    for path, module in model.named_modules():
        report = module.__dict__.get(_REPORT)
        if report is None or any(path.startswith(f"{c}.") for c in covered if c) or "" in covered:
            continue
        covered.append(path)
        rows += [row._replace(path=join(path, row.path)) for row in report]
        for kind, chains in others.items():
            chains.update((join(path, name), pattern) for name, pattern in getattr(report, kind))
    if covered:
        return FusionReport(rows, others)
    found = analyse(model)
    why = {}
    for owner, matches in found.owned.items():
        program = model.get_submodule(owner).__dict__.get(PROGRAM)
        for match in matches:
            if program is None or (match.path, match.pattern) not in program.fused:
                why[join(owner, match.path), match.pattern] = "cmf.fuse has not been called"
    return FusionReport(make_rows(model, found, why, {}))
