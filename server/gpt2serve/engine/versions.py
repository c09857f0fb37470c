"""Which version of a model is the newest, and what was prepared for another one.

Part of the engine thread; the store is asked in a thread of the fetcher.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from functools import partial

from gpt2serve.engine.fetcher import Fetcher
from gpt2serve.engine.messages import Renewed, Submit, Waiting
from gpt2serve.engine.preparation import PreparedRequest
from gpt2serve.engine.remember import remember
from gpt2serve.engine.store import ModelStore, Package
from gpt2serve.errors import Gpt2ServeError, ModelLoadFailed

#: Models that changed of which it is known which version is the newest.
REMEMBERED = 10_000


class Versions:
    """Owned by `Residency`, which retires versions and takes them back."""

    def __init__(
        self,
        fetcher: Fetcher,
        store: ModelStore,
        *,
        prepare_again: Callable[[PreparedRequest], PreparedRequest],
        report: Callable[[Renewed], None],
    ) -> None:
        """prepare_again: the same request for the version that the store has now. It is called in a
        thread of the fetcher, as `report` is."""
        self._fetcher = fetcher
        self._store = store
        self._prepare_again = prepare_again
        self._report = report
        #: By id: the newest version's key, of models that changed; None if it was deleted.
        self._newest: OrderedDict[str, str | None] = OrderedDict()
        #: What waits until the store has said which version is the newest.
        self.renewing: list[Waiting] = []

    def changed(self, model: str, newest: str | None) -> None:
        """The key of the version that the store has now; None if the model was deleted."""
        remember(self._newest, model, newest, most=REMEMBERED)

    def is_outdated(self, package: Package) -> bool:
        return self._newest.get(package.model, package.key) != package.key

    def doubt(self, model: str) -> None:
        """Its newest version cannot be used: perhaps there is a newer one, or none any more."""
        self._store.doubt(model)

    def renew(self, message: Waiting, error: Gpt2ServeError | None = None) -> None:
        """Prepare it again for the model's newest version; what comes of it is reported.

        With an `error` that version must be another one, or the error is the end of it.
        """
        self.renewing.append(message)
        known = self._newest.get(message.package.model)
        self._fetcher.aside(partial(self._renew, message, known, error))

    def renewed(self, result: Renewed) -> None:
        """`renew` has come to an end."""
        self.renewing.remove(result.message)

    def confirm(self, model: str, known: str | None) -> bool:
        """The store was asked after this was known here, so what it said is what holds.

        False if it has told of another version since.
        """
        if self._newest.get(model) != known:
            return False
        self._newest.pop(model, None)
        return True

    def _renew(self, message: Waiting, known: str | None, error: Gpt2ServeError | None) -> None:
        try:
            package, prepared = self._for_newest(message)
            if error is not None and package.manifest == message.package.manifest:
                raise error
        except Gpt2ServeError as failure:
            self._report(Renewed(message, known, error=failure))
        except Exception as failure:
            problem = ModelLoadFailed(f"The model could not be read: {failure}")
            problem.__cause__ = failure
            self._report(Renewed(message, known, error=problem))
        else:
            self._report(Renewed(message, known, package, prepared))

    def _for_newest(self, message: Waiting) -> tuple[Package, PreparedRequest | None]:
        if isinstance(message, Submit):
            prepared = self._prepare_again(message.request.prepared)
            return prepared.package, prepared
        return self._store.resolve(message.package.model), None
