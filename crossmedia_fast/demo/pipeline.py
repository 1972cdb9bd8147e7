"""The whole run: images, CNN, GANs, the verdict, the comparison, the report."""

from __future__ import annotations

import contextlib
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from ..backends import backends, use_backend
from .compare import compare
from .data import prepare
from .distributed import World
from .errors import DemoError, require
from .judge import COUNT, judge
from .progress import Progress
from .report import GanResult, Results, write_report
from .settings import Settings, derive_seed
from .train_cnn import accuracy, train_cnn
from .train_gan import generate, train_gan


def _peak_rss() -> int | None:
    """The most memory this process has held, in bytes; None where the system doesn't say."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _prepare_folder(settings: Settings, world: World, progress: Progress) -> Path:
    """The folder of the checkpoints. A new run removes an older run's, so that none can mix in."""
    out = Path(settings.out)
    checkpoints = out / "checkpoints"
    if world.is_main:
        try:
            if not settings.resume and checkpoints.exists():
                shutil.rmtree(checkpoints)
            checkpoints.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DemoError(f"{out}: can't write there: {error.strerror or error}") from None
        if settings.resume and not any(checkpoints.glob("*.pt")):
            progress.note(f"nothing to resume in {out}: starting from the beginning")
    world.barrier()
    return checkpoints


def run_pipeline(settings: Settings, world: World, progress: Progress) -> dict[str, Any] | None:
    """Train, judge, compare, report. What report.json holds; None except in the first process."""
    start = time.perf_counter()
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    if world.is_main:
        # Before the minutes of training, not after them.
        require("PIL.Image")
        require("matplotlib.figure")
    data = prepare(settings.data, seed=settings.seed, limit=settings.limit)
    dropped = ", ".join(f"{count} {reason}" for reason, count in data.dropped.items() if count)
    progress.note(
        f"images: {data.source}: {len(data.train_labels)} to train on, {len(data.test_labels)} to "
        f"test on, {data.classes} classes; dropped: {dropped or 'none'}"
    )
    folder = _prepare_folder(settings, world, progress)
    with use_backend(settings.backend) if settings.backend else contextlib.nullcontext():
        model, matrix, cnn_history = train_cnn(
            data, settings, world, progress, folder, settings.resume
        )
        gans = []
        for kind in settings.gan_kinds:
            gan, history = train_gan(kind, data, settings, world, progress, folder, settings.resume)
            if world.is_main:
                seed = derive_seed(settings.seed, kind, "images")
                images = generate(gan.average, COUNT, seed, world.device)
                gans.append(GanResult(kind, history, images, judge(model, images, world.device)))
        if not world.is_main:
            world.barrier()  # the first process measures and reports, undisturbed
            return None
        test_verdict = judge(model, data.test_images, world.device)
    progress.note("comparing the training steps, fused and reference in turn")
    comparison = compare(
        data,
        batch_size=settings.batch_size,
        gan_kinds=settings.gan_kinds,
        backend=settings.backend,
        world=world,
    )
    results = Results(
        data=data,
        run={
            "seed": settings.seed,
            "batch_size": settings.batch_size,
            "processes": world.size,
            "threads": torch.get_num_threads(),
            "device": str(world.device),
            "backend": settings.backend,
            "torch": torch.__version__,
            "version": __version__,
            "seconds": time.perf_counter() - start,
            "peak_rss_bytes": _peak_rss(),
        },
        backends={row.name: row.reason or "available" for row in backends()},
        cnn_history=cnn_history,
        matrix=matrix,
        test_accuracy=accuracy(matrix),
        test_verdict=test_verdict,
        gans=gans,
        comparison=comparison,
    )
    try:
        content = write_report(results, Path(settings.out))
    except OSError as error:
        raise DemoError(f"{settings.out}: can't write: {error.strerror or error}") from None
    world.barrier()
    return content
