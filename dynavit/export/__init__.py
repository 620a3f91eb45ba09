"""Pruned models as files that run elsewhere."""

from dynavit.export.onnx import export_onnx, open_onnx
from dynavit.export.verify import Verification, verify

__all__ = ["Verification", "export_onnx", "open_onnx", "verify"]
