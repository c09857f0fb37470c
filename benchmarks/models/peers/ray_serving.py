"""Model multiplexing as Ray Serve's page on it advises, with Ray on this machine alone."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # read when ray is imported

import ray as ray_package
from ray import serve as ray_serve
from starlette.requests import Request

from benchmarks.models.peers.replica import Replica
from benchmarks.models.peers.wire import Loaded, Model, Wish

#: Ray's decorators have no types of their own.
ray: Any = ray_package
serve: Any = ray_serve

#: Requests that the one replica takes at a time: more than there are clients, so that a request
#: whose model is there does not wait outside behind one whose model must be loaded.
MAX_ONGOING_REQUESTS = 256


def application(load: Callable[[str], Model], *, cache: int, threads: int) -> Any:
    """One replica that keeps `cache` models, least recently used out.

    The limit is an argument of a decorator, so the class is made here.
    """

    @serve.deployment(
        num_replicas=1,
        ray_actor_options={"num_cpus": threads},  # Ray sets OMP_NUM_THREADS to the same
        max_ongoing_requests=MAX_ONGOING_REQUESTS,
    )
    class Multiplexed:
        def __init__(self) -> None:
            self._replica = Replica(load)

        @serve.multiplexed(max_num_models_per_replica=cache)
        async def get_model(self, model_id: str) -> Loaded:
            return await self._replica.load(model_id)

        async def __call__(self, request: Request) -> dict[str, Any]:
            if request.method == "GET":
                return {"status": "ready"}
            wish = Wish.read(await request.json())
            get = partial(self.get_model, serve.get_multiplexed_model_id())
            return await self._replica.answer(wish, get)

    deployment: Any = Multiplexed
    return deployment.bind()


def run(deployed: Any, *, port: int, threads: int) -> None:
    """Serve until SIGTERM or Ctrl-C, then end every process of Ray."""
    stop = threading.Event()
    # The paths of Ray's sockets may have 107 characters at most.
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    try:
        ray.init(num_cpus=threads, include_dashboard=False, log_to_driver=False, _temp_dir=folder)
        for name in (signal.SIGTERM, signal.SIGINT):  # in place of Ray's own handlers
            signal.signal(name, lambda *_: stop.set())
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        serve.run(deployed)
        stop.wait()
        serve.shutdown()
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)
