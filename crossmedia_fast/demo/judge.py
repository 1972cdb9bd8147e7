"""The trained CNN judges images: which class, how sure, how evenly the classes are covered."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .models import Classifier
from .train_cnn import predict

COUNT = 1000
_SURE = 0.9
# A class counts as covered where it has at least a fifth of an even share.
_COVERED = 0.2


@dataclass(frozen=True)
class Verdict:
    """What the classifier says about a set of images."""

    count: int
    histogram: list[int]  # images by predicted class
    mean_confidence: float  # of the predicted class
    median_confidence: float
    sure_share: float  # images with a confidence above 0.9
    entropy: float  # of the histogram, over log(classes): 1 = even, 0 = one class only
    covered_classes: int
    predicted: Tensor  # [count]
    confidence: Tensor  # [count]

    def as_json(self) -> dict[str, object]:
        return {
            "images": self.count,
            "histogram": self.histogram,
            "mean_confidence": self.mean_confidence,
            "median_confidence": self.median_confidence,
            "sure_share": self.sure_share,
            "entropy": self.entropy,
            "covered_classes": self.covered_classes,
        }


def judge(model: Classifier, images: Tensor, device: torch.device) -> Verdict:
    """The verdict on `images` [N, 1, 28, 28], N > 0."""
    probabilities = predict(model, images, device)
    classes = probabilities.shape[1]
    confidence, predicted = probabilities.max(dim=1)
    histogram = torch.bincount(predicted, minlength=classes)
    shares = histogram.double() / len(images)
    # x log x is 0 at 0; xlogy says so, the product says NaN.
    entropy = -torch.special.xlogy(shares, shares).sum().item() / math.log(classes)
    return Verdict(
        count=len(images),
        histogram=histogram.tolist(),
        mean_confidence=confidence.mean().item(),
        median_confidence=confidence.median().item(),
        sure_share=(confidence > _SURE).float().mean().item(),
        entropy=max(entropy, 0.0),
        covered_classes=int((shares >= _COVERED / classes).sum()),
        predicted=predicted,
        confidence=confidence,
    )


def representative_rows(
    images: Tensor, verdict: Verdict, per_class: int, seed: int = 0
) -> list[Tensor | None]:
    """For each class, up to `per_class` random images of those judged to be it; None = none."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    rows: list[Tensor | None] = []
    for value in range(len(verdict.histogram)):
        chosen = order[verdict.predicted[order] == value][:per_class]
        rows.append(images[chosen] if len(chosen) else None)
    return rows
