"""The engine in a plain script: no server, no web framework.

python examples/in_process.py STORE MODEL "My dream is"
"""

import asyncio
import sys

from gpt2serve import Engine, SamplingParams, TokenEvent


async def stream(engine: Engine, model: str, prompt: str) -> None:
    """Print tokens as they are made."""
    print(prompt, end="")
    async for event in engine.stream(model, prompt, SamplingParams(max_new_tokens=30, seed=7)):
        if isinstance(event, TokenEvent):
            print(event.token.text, end="", flush=True)
    print()


def main(store: str, model: str, prompt: str) -> None:
    with Engine(store) as engine:
        params = SamplingParams(num_return_sequences=3, do_sample=True, seed=7)
        result = engine.generate(model, prompt, params)
        for generation in result.generations:
            print(f"[{generation.finish_reason}, {generation.tokens} tokens] {generation.text}")
        print(f"{result.usage.completion_tokens} tokens, {result.timing.decode_ms:.0f} ms")
        asyncio.run(stream(engine, model, prompt))


if __name__ == "__main__":
    main(*sys.argv[1:])
