"""Ray Serve's model multiplexing with transformers in fp32."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from benchmarks.models.peers import ray_serving, wire


def load(checkpoints: Path, threads: int, model_id: str) -> wire.Model:
    import torch

    from benchmarks.models.peers.transformers_model import TransformersModel

    torch.set_num_threads(threads)
    return TransformersModel(checkpoints / model_id)


def main() -> None:
    args = wire.parser("ray_transformers", __doc__).parse_args()
    how = partial(load, args.checkpoints, args.threads)
    deployed = ray_serving.application(how, cache=args.cache, threads=args.threads)
    ray_serving.run(deployed, port=args.port, threads=args.threads)


if __name__ == "__main__":
    main()
