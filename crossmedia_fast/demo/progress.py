"""What the user sees during training: bars in a terminal, a few plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any, Protocol

from .errors import require

_REFRESH_SECONDS = 0.2
_PLAIN_LINES = 5  # a network, at most


class Progress(Protocol):
    """One network's training at a time: begin, step by step, end (also where it was cut short)."""

    def note(self, text: str) -> None: ...

    def begin(self, network: str, epochs: int, steps: int, done: int) -> None:
        """`steps` an epoch; `done` epochs were finished by the run that this one continues."""

    def step(self, images: int) -> None: ...

    def epoch(self, epoch: int, numbers: dict[str, float]) -> None: ...

    def end(self) -> None: ...


def describe(numbers: dict[str, float]) -> str:
    """'loss 0.113, test accuracy 97.40 %, 2,310 images/s' from an epoch's row."""
    parts = []
    for name, value in numbers.items():
        if name in ("epoch", "seconds"):
            continue
        if name.endswith("accuracy"):
            parts.append(f"{name.replace('_', ' ')} {100 * value:.2f} %")
        elif name == "images_per_second":
            parts.append(f"{value:,.0f} images/s")
        else:
            parts.append(f"{name.replace('_', ' ')} {value:.3f}")
    return ", ".join(parts)


def describe_briefly(numbers: dict[str, float]) -> str:
    """'loss 0.11 test 97.4%' or 'loss D 1.25 G 0.91', for a terminal's 80 columns."""
    if "discriminator_loss" in numbers:
        return f"loss D {numbers['discriminator_loss']:.2f} G {numbers['generator_loss']:.2f}"
    return f"loss {numbers['loss']:.2f} test {100 * numbers['test_accuracy']:.1f}%"


class SilentProgress:
    """For every process but the first."""

    def note(self, text: str) -> None:
        pass

    def begin(self, network: str, epochs: int, steps: int, done: int) -> None:
        pass

    def step(self, images: int) -> None:
        pass

    def epoch(self, epoch: int, numbers: dict[str, float]) -> None:
        pass

    def end(self) -> None:
        pass


class PlainProgress(SilentProgress):
    """Lines for logs and pipes: few, and none that needs a terminal."""

    def __init__(self) -> None:
        self._network = ""
        self._epochs = 0

    def note(self, text: str) -> None:
        print(text, flush=True)

    def begin(self, network: str, epochs: int, steps: int, done: int) -> None:
        self._network, self._epochs = network, epochs
        continued = f", continuing after epoch {done}" if done else ""
        print(f"{network}: {epochs} epochs of {steps} steps{continued}", flush=True)

    def epoch(self, epoch: int, numbers: dict[str, float]) -> None:
        every = max(1, self._epochs // _PLAIN_LINES)
        if epoch % every == 0 or epoch == self._epochs:
            print(f"{self._network}: epoch {epoch}: {describe(numbers)}", flush=True)


class RichProgress:
    """A bar a network, with the last epoch's losses and the images a second of the moment."""

    def __init__(self) -> None:
        rich_progress = require("rich.progress")
        self._bars = rich_progress.Progress(
            # Widths that fit 80 columns: rich would cut the numbers first.
            rich_progress.TextColumn("[bold]{task.description:<9}"),
            rich_progress.BarColumn(bar_width=12),
            rich_progress.TextColumn("{task.fields[epoch]}"),
            rich_progress.TextColumn("{task.fields[speed]}"),
            rich_progress.TimeRemainingColumn(),
            rich_progress.TextColumn("{task.fields[numbers]}"),
        )
        self._task: Any = None
        self._epochs = 0
        self._since = 0.0
        self._steps = 0
        self._images = 0

    def note(self, text: str) -> None:
        self._bars.console.print(text, highlight=False, markup=False)

    def begin(self, network: str, epochs: int, steps: int, done: int) -> None:
        self._epochs, self._since, self._steps, self._images = epochs, time.perf_counter(), 0, 0
        self._task = self._bars.add_task(
            network,
            total=epochs * steps,
            completed=done * steps,
            epoch=f"{done}/{epochs}",
            speed="",
            numbers="",
        )
        self._bars.start()

    def step(self, images: int) -> None:
        self._steps += 1
        self._images += images
        elapsed = time.perf_counter() - self._since
        if elapsed >= _REFRESH_SECONDS:  # a redraw each step would cost more than a small network
            speed = f"{self._images / elapsed:,.0f} images/s"
            self._bars.update(self._task, advance=self._steps, speed=speed)
            self._since, self._steps, self._images = time.perf_counter(), 0, 0

    def epoch(self, epoch: int, numbers: dict[str, float]) -> None:
        self._bars.update(
            self._task,
            advance=self._steps,
            epoch=f"{epoch}/{self._epochs}",
            numbers=describe_briefly(numbers),
        )
        self._steps = 0

    def end(self) -> None:
        if self._task is None:
            return
        self._bars.stop()
        # The finished bar stays on the screen; the next network's starts below it.
        self._bars.remove_task(self._task)
        self._task = None


def make_progress(is_main: bool) -> Progress:
    if not is_main:
        return SilentProgress()
    if not sys.stdout.isatty():
        return PlainProgress()
    return RichProgress()
