"""Drop-in fusion: fuse(model), fusion_report(model), unfuse(model)."""

from .interface import fuse, fusion_report, unfuse

__all__ = ["fuse", "fusion_report", "unfuse"]
