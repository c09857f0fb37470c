"""gpt2export: checkpoint in, model package out."""

import os

# As in gpt2serve.engine: onnxruntime sends telemetry if this is not set before it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

#: Goes into every manifest; a package made by another version is exported again.
__version__ = "0.1.0"
