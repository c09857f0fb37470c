"""The Hugging Face surface: the Inference API and Text Generation Inference, for every model.

It translates their bodies into the engine's terms and the results back; the rest of the server
knows nothing of it.
"""
