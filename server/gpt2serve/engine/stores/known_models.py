"""What a store has said of its models, and when."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass, field

from gpt2serve.engine.remember import remember
from gpt2serve.engine.stores.backend import Package, Seen
from gpt2serve.errors import PackageError, StoreUnavailable

#: Models, and as many ids that are no models, of which it is remembered what the store said.
REMEMBERED = 10_000

NEVER = float("-inf")

#: A package, an error, or None if there is no such model.
Answer = Seen | PackageError | StoreUnavailable | None


@dataclass(slots=True, eq=False)
class Known:
    """What the store said of a model. `checked` is when, in seconds; `NEVER` if it has not."""

    answer: Answer = None
    checked: float = NEVER
    #: Held by the one thread that asks the store.
    asking: threading.Lock = field(default_factory=threading.Lock)


class KnownModels:
    """Thread-safe. Ids that are no models cannot push out models: who makes them up may go on."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._models: OrderedDict[str, Known] = OrderedDict()
        self._others: OrderedDict[str, Known] = OrderedDict()

    def get(self, model: str) -> Known:
        with self._lock:
            known = self._models.get(model) or self._others.get(model) or Known()
            self._keep(model, known)
            return known

    def learn(self, model: str, known: Known, answer: Answer, checked: float) -> None:
        with self._lock:
            known.answer, known.checked = answer, checked
            self._keep(model, known)

    def doubt(self, model: str) -> None:
        """Let the next request for the model ask the store, however fresh the answer is."""
        with self._lock:
            if model in self._models:
                self._models[model].checked = NEVER

    def peek(self, model: str) -> Package | None:
        with self._lock:
            known = self._models.get(model)
        return known.answer.package if known and isinstance(known.answer, Seen) else None

    def models(self) -> list[str]:
        """Ids of models that the store has."""
        with self._lock:
            return list(self._models)

    def _keep(self, model: str, known: Known) -> None:
        self._models.pop(model, None)
        self._others.pop(model, None)
        kept = self._models if isinstance(known.answer, Seen) else self._others
        remember(kept, model, known, most=REMEMBERED)
