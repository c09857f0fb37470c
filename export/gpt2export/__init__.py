"""gpt2export: checkpoint in, model package out."""

#: Goes into every manifest; a package made by another version is exported again.
__version__ = "0.1.0"
