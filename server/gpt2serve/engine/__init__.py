"""The engine: models in memory, requests to tokens."""

from gpt2serve.settings import disable_telemetry

disable_telemetry()  # before a module of the engine imports onnxruntime
