"""Checkpoints to ONNX and TensorRT, with parity and latency."""
