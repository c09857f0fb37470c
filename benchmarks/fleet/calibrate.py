"""How long things take on a real server: `ServerTimes` from a minute of requests.

Nothing is fitted to the traffic that is predicted afterwards. Each time is what the server says
in the `timing` of its answers, and each request here is about one of them.
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import time
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.common.measuring import say, undisturbed
from benchmarks.common.prompts import prompts
from benchmarks.common.servers import metric
from benchmarks.fleet.times import ServerTimes
from gpt2serve.engine.packer import REST_SECONDS
from gpt2serve.engine.turns import PACKED_SHARE
from gpt2serve.engine.worker import STEPS_WORTH_PACKING

BATCHES = (1, 2, 4, 8, 16, 32)
PROMPT_LENGTHS = (4, 8, 32, 64, 120)
_PROMPT_TOKENS = 8
_TIMEOUT = 120.0
_DATA = b"data: "
#: Gaps between tokens of which the pace beside packing is taken: it has surely not ended then.
_GAPS = 4
#: In which a request surely begins.
_BEGIN_SECONDS = 0.05

_T = TypeVar("_T")


@dataclass(frozen=True)
class Effort:
    """How often everything is done. tokens: of a sequence whose decoding is measured.

    storm_tokens: of one beside which others are packed. tries: how often a measurement is made
    that other work disturbs.
    """

    repeats: int
    loads: int
    tokens: int
    storm_tokens: int
    tries: int = 1


FULL = Effort(repeats=5, loads=40, tokens=24, storm_tokens=400, tries=2)
QUICK = Effort(repeats=2, loads=12, tokens=12, storm_tokens=240)


class Probe:
    """One request after the other; streamed, as the traffic is."""

    def __init__(self, url: str) -> None:
        self.url = url

    def generate(self, model: str, prompt: str, tokens: int, sequences: int = 1) -> dict[str, Any]:
        """The server's timing in ms, with "wall_ms" as seen from here, and "prompt_tokens".

        "came" is when each of the tokens came, in seconds on a clock of its own.
        """
        body = {
            "model": model,
            "prompt": prompt,
            "max_new_tokens": tokens,
            "min_new_tokens": tokens,
            "num_return_sequences": sequences,
            "do_sample": True,
            "stream": True,
        }
        request = urllib.request.Request(
            self.url + "/generate", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        started = time.perf_counter()
        with urllib.request.urlopen(request, timeout=_TIMEOUT) as response:
            events = [(time.perf_counter(), line) for line in response if line.startswith(_DATA)]
        wall = 1000 * (time.perf_counter() - started)
        *_, (_, last), _done = events
        end = json.loads(last.removeprefix(_DATA))
        return {
            **end["timing"],
            "wall_ms": wall,
            "prompt_tokens": end["usage"]["prompt_tokens"],
            "came": [at for at, _ in events[: tokens * sequences]],
        }

    def packs(self) -> tuple[float, float]:
        """Models packed so far, of which there must be one, and the seconds that it took."""
        name = 'model_load_phase_seconds_{}{{phase="pack"}}'
        return metric(self.url, name.format("count")), metric(self.url, name.format("sum"))


def resident_memory(process: int) -> int:
    """Bytes."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


class Calibration:
    """models: more than the server's cache holds, none of which it has loaded yet.

    process: id of the server's, a child of this process. watched: an entry is added for each
    measurement, with the share of the cores that other work took meanwhile.
    """

    def __init__(
        self,
        url: str,
        process: int,
        checkpoint: Path,
        models: Sequence[str],
        effort: Effort,
        watched: list[dict[str, Any]],
    ) -> None:
        self._probe = Probe(url)
        self._process = process
        self._memory_before = resident_memory(process)
        self._checkpoint = checkpoint
        self._hot, *colds = models
        self._cold_models = len(colds)
        #: Each comes again when it has long been evicted.
        self._colds = itertools.cycle(colds)
        self._effort, self._watched = effort, watched
        (prompt,) = prompts(checkpoint, 1, _PROMPT_TOKENS)
        self._prompt: str = prompt["text"]

    def times(self) -> ServerTimes:
        say(f"loads: {self._cold_models} models for the first time, {self._effort.loads} again")
        first_load, load = self._watch("loads", self._loads, tries=1)
        tries = self._effort.tries
        say("packing")
        pack = self._watch("packing", self._pack, tries)
        model_bytes, resident_bytes = self._sizes()
        say("steps: decoding and prefill, of a packed model and of cold ones")
        self._pack_hot()
        decode = self._watch("decode", lambda: self._decode(self._same, self._effort.tokens), tries)
        prefill = self._watch("prefill", lambda: self._prefill(self._same), tries)
        overhead = self._watch("overhead", self._overhead, tries)
        few = min(self._effort.tokens, STEPS_WORTH_PACKING - 1)
        unpacked_decode = self._watch(
            "unpacked decode", lambda: self._decode(self._another, few), tries
        )
        unpacked_prefill = self._watch(
            "unpacked prefill", lambda: self._prefill(self._another), tries
        )
        say("steps beside packing")
        packing, step = self._watch("steps beside packing", self._storm, tries)
        alone = (1 + PACKED_SHARE) * unpacked_decode[0][1]
        return ServerTimes(
            decode=decode,
            prefill=prefill,
            unpacked_decode=unpacked_decode,
            unpacked_prefill=unpacked_prefill,
            load=load,
            first_load=first_load,
            pack=pack,
            packing_beside_steps=max(1.0, packing / pack),
            step_beside_packing=max(1.0, step / alone),
            overhead=overhead,
            model_bytes=model_bytes,
            resident_bytes=resident_bytes,
        )

    def _watch(self, what: str, measure: Callable[[], _T], tries: int) -> _T:
        """What is loaded for the first time cannot be tried again."""
        # The server is a child of this process, so it must not be named, and counted, again.
        told = undisturbed(lambda: {"value": measure()}, [os.getpid()], tries)
        self._watched.append({"what": what, "others": told["others"]})
        value: _T = told["value"]
        return value

    def _same(self) -> str:
        return self._hot

    def _another(self) -> str:
        """One that is not in memory."""
        return next(self._colds)

    def _pack_hot(self) -> None:
        """While nothing else computes, a model is packed before its second token."""
        self._probe.generate(self._hot, self._prompt, STEPS_WORTH_PACKING)

    def _cold(self) -> float:
        """Seconds that a request waited for its model."""
        return self._ms("load", self._another(), 1) / 1000

    def _ms(self, phase: str, model: str, tokens: int, sequences: int = 1) -> float:
        answer = self._probe.generate(model, self._prompt, tokens, sequences)
        return float(answer[f"{phase}_ms"])

    def _loads(self) -> tuple[float, float]:
        """One after the other through more models than fit: none is ever there."""
        first = [self._cold() for _ in range(self._cold_models)]
        again = [self._cold() for _ in range(self._effort.loads)]
        return statistics.median(first), statistics.median(again)

    def _pack(self) -> float:
        """Seconds of packing a model that has nothing but its prefill beside it."""
        self._pack_hot()
        count, seconds = self._probe.packs()
        for _ in range(self._effort.loads):
            self._probe.generate(self._another(), self._prompt, STEPS_WORTH_PACKING)
        count_after, seconds_after = self._probe.packs()
        return (seconds_after - seconds) / (count_after - count)

    def _sizes(self) -> tuple[int, int]:
        """Bytes of a model, as counted and as the process grew; the second is not less.

        All that are in memory are packed, and have let go of what they need not.
        """
        time.sleep(REST_SECONDS + 0.5)
        models = metric(self._probe.url, "models_resident")
        counted = metric(self._probe.url, "model_cache_used_bytes") / models
        grown = (resident_memory(self._process) - self._memory_before) / models
        return round(counted), round(max(counted, grown))

    def _decode(self, model: Callable[[], str], tokens: int) -> tuple[tuple[float, float], ...]:
        """Seconds of a step by the number of sequences."""
        points = []
        for batch in BATCHES:
            times = [
                self._ms("decode", model(), tokens, batch) for _ in range(self._effort.repeats + 1)
            ][1:]  # the first finds its memory
            points.append((float(batch), statistics.median(times) / 1000 / (tokens - 1)))
        return tuple(points)

    def _prefill(self, model: Callable[[], str]) -> tuple[tuple[float, float], ...]:
        """Seconds of a step by the number of tokens."""
        points = []
        for length in PROMPT_LENGTHS:
            made = prompts(self._checkpoint, self._effort.repeats + 1, length)
            answers = [self._probe.generate(model(), one["text"], 1) for one in made][1:]
            tokens = float(answers[0]["prompt_tokens"])
            points.append((tokens, statistics.median(a["prefill_ms"] for a in answers) / 1000))
        return tuple(points)

    def _overhead(self) -> float:
        """Seconds of a request's time that its `timing` does not tell of."""
        outside: list[float] = []
        for _ in range(4 * self._effort.repeats):
            answer = self._probe.generate(self._hot, self._prompt, 1)
            inside = sum(answer[f"{name}_ms"] for name in ("queue", "load", "prefill", "decode"))
            outside.append(answer["wall_ms"] - inside)
        return statistics.median(outside) / 1000

    def _storm(self) -> tuple[float, float]:
        """Seconds of packing a model beside another one's steps, and between its tokens then.

        A packed model decodes meanwhile; cold ones come one after the other.
        """
        tokens = max(STEPS_WORTH_PACKING, self._effort.storm_tokens // 4)
        between: list[float] = []
        count = seconds = 0.0
        for _ in range(self._effort.repeats):
            self._pack_hot()
            before = self._probe.packs()
            with ThreadPoolExecutor(1) as pool:
                hot = pool.submit(self._ms, "decode", self._hot, self._effort.storm_tokens)
                time.sleep(_BEGIN_SECONDS)
                while not hot.done() or not between:
                    came = self._probe.generate(self._another(), self._prompt, tokens)["came"]
                    between.append((came[_GAPS] - came[0]) / _GAPS)
            after = self._probe.packs()
            count += after[0] - before[0]
            seconds += after[1] - before[1]
        return seconds / max(1.0, count), statistics.median(between)
