"""Models as ONNX graphs. Needs the extra ``[onnx]``."""

from autometa.onnx_export.export import export_onnx, onnx_inputs

__all__ = ["export_onnx", "onnx_inputs"]
