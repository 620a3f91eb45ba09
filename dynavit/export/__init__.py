"""Pruned models as files that run elsewhere."""

from dynavit.export.onnx import export_onnx, open_onnx
from dynavit.export.verify import Verification, clear_choices, verify

__all__ = ["Verification", "clear_choices", "export_onnx", "open_onnx", "verify"]
