"""Where the time of a token goes: by op, in sampling, in Python, in HTTP."""
