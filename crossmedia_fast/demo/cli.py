"""`python -m crossmedia_fast demo`: flags, errors as one line, exit status.

0: done. 2: something the user can mend, said in one line on stderr. 130: interrupted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..backends import NAMES, why_unavailable
from .distributed import join_world
from .errors import DemoError
from .pipeline import run_pipeline
from .progress import make_progress
from .report_html import format_bytes, format_duration
from .settings import DEFAULT_EPOCHS, GAN_KINDS, Settings


def _at_least(minimum: int, maximum: int) -> Callable[[str], int]:
    def integer(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"expected a whole number, got {text!r}") from None
        if not minimum <= value <= maximum:
            raise argparse.ArgumentTypeError(f"must be from {minimum} to {maximum}, got {value}")
        return value

    return integer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The demo's flags."""
    epochs = ", ".join(f"{network} {count}" for network, count in DEFAULT_EPOCHS.items())
    parser.add_argument(
        "--data",
        metavar="PATH",
        help="a folder of IDX files (MNIST, Fashion-MNIST, EMNIST) or of image files, one folder a "
        "class (default: 5,000 embedded MNIST digits)",
    )
    parser.add_argument("--gan", choices=[*GAN_KINDS, "both"], default="both", help="default: both")
    parser.add_argument(
        "--epochs",
        type=_at_least(1, 10**6),
        metavar="N",
        help=f"epochs of every network (default: {epochs}; fewer where there are more images)",
    )
    parser.add_argument(
        "--batch-size",
        type=_at_least(1, 2**20),
        default=64,
        metavar="N",
        help="images a step, over all processes (default: 64)",
    )
    parser.add_argument("--backend", choices=NAMES, help="default: the package chooses")
    parser.add_argument(
        "--seed", type=_at_least(0, 2**31 - 1), default=0, metavar="N", help="default: 0"
    )
    parser.add_argument(
        "--out",
        default="demo_out",
        metavar="DIR",
        help="folder for the report and the checkpoints (default: demo_out)",
    )
    parser.add_argument("--resume", action="store_true", help="continue the run that --out holds")
    parser.add_argument(
        "--threads", type=_at_least(1, 4096), metavar="N", help="CPU threads (default: PyTorch's)"
    )
    parser.add_argument(
        "--limit",
        type=_at_least(4, 10**9),
        metavar="N",
        help="use at most N images, every class alike",
    )


def _settings(args: argparse.Namespace) -> Settings:
    names = Settings.__dataclass_fields__
    return Settings(**{name: getattr(args, name) for name in names})


def _summary(content: dict[str, Any], out: Path) -> str:
    lines = [
        "",
        f"CNN: {100 * content['cnn']['test_accuracy']:.2f} % of the test images right",
    ]
    for kind, gan in content["gans"].items():
        verdict = gan["verdict"]
        lines.append(
            f"{kind} GAN: the CNN is {100 * verdict['mean_confidence']:.1f} % sure of its images "
            f"and sees {verdict['covered_classes']} of {len(verdict['histogram'])} classes"
        )
    rows = content["comparison"]
    for fused, reference in zip(rows[::2], rows[1::2], strict=True):
        lines.append(
            f"{fused['step']} step: {reference['median_ms']:.2f} ms reference, "
            f"{fused['median_ms']:.2f} ms fused; kept for backward "
            f"{format_bytes(reference['saved_bytes'])} and {format_bytes(fused['saved_bytes'])}"
        )
    lines.append(f"{format_duration(content['run']['seconds'])}; report: {out / 'report.html'}")
    return "\n".join(lines)


def run(args: argparse.Namespace) -> int:
    """Run the demo; the exit status."""
    settings = _settings(args)
    try:
        if settings.backend is not None and why_unavailable(settings.backend):
            reason = why_unavailable(settings.backend)
            raise DemoError(f"--backend {settings.backend} can't run here: {reason}")
        with join_world(cpu_only=settings.backend == "cpu") as world:
            try:
                progress = make_progress(world.is_main)
                try:
                    content = run_pipeline(settings, world, progress)
                finally:
                    progress.end()  # a bar that is left running hides the terminal's cursor
            except DemoError as error:
                if world.is_main:
                    print(f"crossmedia_fast demo: error: {error}", file=sys.stderr)
                return 2
        if content is not None:
            print(_summary(content, Path(settings.out)))
    except DemoError as error:
        print(f"crossmedia_fast demo: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            f"\ninterrupted; --resume --out {settings.out} continues after the last finished epoch",
            file=sys.stderr,
        )
        return 130
    return 0
