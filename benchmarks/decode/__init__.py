"""How fast is one token, and how long does the first one take? gpt2serve beside its peers."""
