"""Writes a network as an ONNX model: `python -m benchmarks.peers.export_network CASE FILE`."""

from __future__ import annotations

import json
import sys
import warnings

import torch

from .. import models
from ..shapes import Case
from .onnx_model import OPSET


def main() -> None:
    case = Case.from_json(json.loads(sys.argv[1]))
    model = models.network(case)
    with warnings.catch_warnings():
        # the exporter that needs no further package
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(
            model,
            (torch.zeros(models.input_shape(case)),),
            sys.argv[2],
            dynamo=False,
            opset_version=OPSET,
            input_names=["input"],
            output_names=["output"],
        )


if __name__ == "__main__":
    main()
