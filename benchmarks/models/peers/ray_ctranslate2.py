"""Ray Serve's model multiplexing with CTranslate2 in int8."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from benchmarks.models.peers import ray_serving, wire


def load(checkpoints: Path, ct2: Path, threads: int, model_id: str) -> wire.Model:
    from benchmarks.models.peers.ctranslate2_model import CTranslate2Model

    return CTranslate2Model(ct2 / model_id / "int8", checkpoints / model_id, threads)


def main() -> None:
    parser = wire.parser("ray_ctranslate2", __doc__)
    parser.add_argument(
        "--ct2", type=Path, required=True, metavar="DIR", help="DIR/ID/int8 is a converted model"
    )
    args = parser.parse_args()
    how = partial(load, args.checkpoints, args.ct2, args.threads)
    deployed = ray_serving.application(how, cache=args.cache, threads=args.threads)
    ray_serving.run(deployed, port=args.port, threads=args.threads)


if __name__ == "__main__":
    main()
