"""Every model of a store at the same time, from one event loop.

python examples/all_at_once.py STORE "My dream is"
"""

import asyncio
import sys

from gpt2serve import Engine, Generation, SamplingParams


async def first_text(engine: Engine, model: str, prompt: str) -> str:
    async for event in engine.stream(model, prompt, SamplingParams(max_new_tokens=30, seed=7)):
        if isinstance(event, Generation):
            return event.text
    raise AssertionError("a stream ends with a text or raises")


async def main(store: str, prompt: str) -> None:
    with Engine(store) as engine:
        models = [status.id for status in engine.list_models()]
        texts = await asyncio.gather(*(first_text(engine, model, prompt) for model in models))
        for model, text in zip(models, texts, strict=True):
            print(f"{model}: {text}")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
