"""Which model is asked for when, and for how long. Pure: everything follows from the seed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import numpy.typing as npt

from benchmarks.fleet.trace import Floats, Ints, popularity
from benchmarks.load.traffic import TWEET_OUTPUTS, poisson_times

#: The exponent of popularity where a trace is about something else.
USUAL_ZIPF = 1.0
#: While a crawler sweeps, it makes that share of the requests; it rests between its sweeps.
_SWEEPING = 0.8
#: A trace is so many days long.
DAYS = 3
#: A model is asked for so little at the other end of its day, beside its best hour.
_NIGHT = 0.02
#: So many requests after one another, a popular model changes places with any other.
_CHANGE_EVERY = 100
#: Requests of a session on average, and seconds between two of them.
_SESSION_REQUESTS, _SESSION_GAP = 5, 20.0
#: A loop is larger than the cache by this factor.
_LOOP = 1.1
_LONG = 8


@dataclass(frozen=True)
class Trace:
    """One entry a request in order of time, except `sizes`: bytes, one entry a model.

    durations: seconds from the time when the model is there to the last token.
    """

    times: Floats
    models: Ints
    durations: Floats
    sizes: Ints

    @cached_property
    def keys(self) -> list[str]:
        return [str(model) for model in self.models.tolist()]

    @cached_property
    def sizes_of_keys(self) -> dict[str, int]:
        return {str(model): size for model, size in enumerate(self.sizes.tolist())}


@dataclass(frozen=True)
class Shape:
    """rate: requests a second. places: models of usual size that the cache has room for."""

    models: int
    requests: int
    rate: float
    places: int


#: Draws the models of all requests.
Draw = Callable[[Shape, np.random.Generator], Ints]


@dataclass(frozen=True)
class Kind:
    """slower: answers take so many times as long as usual."""

    name: str
    draw: Draw
    slower: int = 1
    in_sessions: bool = False


def zipf(exponent: float, shape: Shape, rng: np.random.Generator) -> Ints:
    """Independent requests."""
    return popularity(shape.models, exponent).draw(shape.requests, rng)


def uniform(shape: Shape, rng: np.random.Generator) -> Ints:
    return rng.integers(shape.models, size=shape.requests)


def loop(shape: Shape, rng: np.random.Generator) -> Ints:
    """One after the other, of a few more models than there is room for."""
    del rng
    return np.arange(shape.requests) % min(shape.models, max(2, round(_LOOP * shape.places)))


def crawler(share: float, shape: Shape, rng: np.random.Generator) -> Ints:
    """It asks for one model after the other, all the time, with that share of the requests."""
    return _with_crawler(rng.random(shape.requests) < share, shape, rng)


def sweeps(share: float, shape: Shape, rng: np.random.Generator) -> Ints:
    """The same share on average: all models at once, as fast as it can, and then a long rest."""
    every = round(shape.models / share)
    sweeping = np.arange(shape.requests) % every < shape.models / _SWEEPING
    return _with_crawler(sweeping & (rng.random(shape.requests) < _SWEEPING), shape, rng)


def _with_crawler(its: npt.NDArray[np.bool], shape: Shape, rng: np.random.Generator) -> Ints:
    """The order in which it goes has nothing to do with how popular a model is."""
    models = zipf(USUAL_ZIPF, shape, rng)
    order = rng.permutation(shape.models)
    models[its] = order[np.arange(its.sum()) % shape.models]
    return models


def drift(shape: Shape, rng: np.random.Generator) -> Ints:
    """Each model has an hour of the day at which it is asked for the most, as in time zones."""
    peaks = rng.random(shape.models)
    days = np.linspace(0, DAYS, shape.requests, endpoint=False)
    models = np.empty(shape.requests, dtype=np.int64)
    open_ = np.arange(shape.requests)
    while len(open_):
        drawn = popularity(shape.models, USUAL_ZIPF).draw(len(open_), rng)
        activity = ((1 + np.cos(2 * np.pi * (days[open_] - peaks[drawn]))) / 2) ** 2
        taken = rng.random(len(open_)) < _NIGHT + (1 - _NIGHT) * activity
        models[open_[taken]] = drawn[taken]
        open_ = open_[~taken]
    return models


def churn(shape: Shape, rng: np.random.Generator) -> Ints:
    """What is popular changes: again and again a popular model swaps its place with any other."""
    ranks = zipf(USUAL_ZIPF, shape, rng)
    at = np.arange(shape.models)
    models = np.empty_like(ranks)
    for begin in range(0, shape.requests, _CHANGE_EVERY):
        part = slice(begin, begin + _CHANGE_EVERY)
        models[part] = at[ranks[part]]
        one = popularity(shape.models, USUAL_ZIPF).draw(1, rng)[0]
        other = rng.integers(shape.models)
        at[one], at[other] = at[other], at[one]
    return models


KINDS = (
    *(Kind(f"Zipf {exponent}", partial(zipf, exponent)) for exponent in (0.6, 0.8, 1.0, 1.2)),
    Kind("Zipf 1.0, long answers", partial(zipf, USUAL_ZIPF), slower=_LONG),
    Kind("sessions", partial(zipf, USUAL_ZIPF), in_sessions=True),
    Kind("drift through the day", drift),
    Kind("changing popularity", churn),
    *(Kind(f"crawler, {share:.0%}", partial(crawler, share)) for share in (0.05, 0.2)),
    *(Kind(f"sweeps, {share:.0%}", partial(sweeps, share)) for share in (0.05, 0.2)),
    Kind("uniform", uniform),
    Kind("loop", loop),
)


def draw(
    kind: Kind, shape: Shape, sizes: Ints, seconds: Callable[[int], float], seed: int
) -> Trace:
    """seconds: that an answer takes, by its tokens. Independent of kind: lengths, like tweets."""
    rng = np.random.default_rng(seed)
    times = poisson_times(shape.rate, shape.requests / shape.rate, rng)
    tokens = TWEET_OUTPUTS.draw(shape.requests, rng)
    durations = kind.slower * np.array([seconds(count) for count in tokens.tolist()])
    models = kind.draw(shape, rng)
    if kind.in_sessions:
        times, models = _sessions(models, shape, rng)
    return Trace(times, models, durations, sizes)


def _sessions(of_sessions: Ints, shape: Shape, rng: np.random.Generator) -> tuple[Floats, Ints]:
    """Somebody asks a model some times in a row: more models than are needed, each a session."""
    count = len(of_sessions)
    begins = poisson_times(
        shape.rate / _SESSION_REQUESTS, count * _SESSION_REQUESTS / shape.rate, rng
    )
    lengths = rng.geometric(1 / _SESSION_REQUESTS, count)
    sessions = np.repeat(np.arange(count), lengths)
    gaps = rng.exponential(_SESSION_GAP, len(sessions))
    ends = np.cumsum(lengths)
    since_all = np.cumsum(gaps)
    since = since_all - since_all[ends - lengths][sessions]
    times = begins[sessions] + since
    order = np.argsort(times, kind="stable")[: shape.requests]
    return times[order], of_sessions[sessions][order]
