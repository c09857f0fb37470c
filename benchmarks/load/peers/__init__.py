"""Servers to compare with, as people write them first: FastAPI around a library.

Each is a program of its own that speaks OpenAI's `/v1/completions`.
"""
