"""What a step runs: the two forms of a model.

Unpacked, it computes with its weights as they lie in the file, in a session that all models of
its shape share. Packed, it has a session for each part of its graph, and a private copy of its
matrices in the processor's order.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

from gpt2serve.engine.remember import remember
from gpt2serve.engine.sessions import Session, open_session
from gpt2serve.engine.weights import Graph, MappedFile, WeightInput, in_parts, unpacked
from gpt2serve.errors import CorruptPackage
from gpt2serve.package import GRAPH_FILE, Manifest

#: Shapes of which a session is kept; one without weights takes one or two megabytes.
REMEMBERED = 16


def can_be_unpacked(manifest: Manifest, device: str) -> bool:
    """Whether the model has a form that is ready at once and gives the same bits.

    Products of integers are exact in any order; fp32's are not.
    """
    return (device, manifest.precision) == ("cpu", "int8")


@dataclass(frozen=True, slots=True)
class Stage:
    """A session, the names of what it takes, and where the weights lie that are among that.

    weights: each with its address in memory. carried_in, carried_out: names of what goes from one
    stage to the next.
    """

    session: Session
    inputs: frozenset[str]
    weights: tuple[tuple[WeightInput, int], ...] = ()
    carried_in: tuple[str, ...] = ()
    carried_out: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, session: Session, graph: Graph | None = None, file: MappedFile | None = None
    ) -> Stage:
        """`graph` and `file`: of a session that takes its weights as inputs."""
        inputs = frozenset(one.name for one in session.get_inputs())
        if graph is None or file is None:
            return cls(session, inputs)
        weights = tuple((one, file.address_of(one)) for one in graph.weights)
        return cls(session, inputs, weights, graph.carried_in, graph.carried_out)


#: What a step runs, one after the other.
Form = tuple[Stage, ...]


@dataclass(frozen=True, slots=True)
class Shape:
    """What all models with one graph share: a session without weights, and graphs to pack."""

    session: Session
    unpacked: Graph
    parts: tuple[Graph, ...]


class Shapes:
    """Those that were used last. Owned by the loader."""

    def __init__(self) -> None:
        #: By sha256 of the graph.
        self._known: OrderedDict[str, Shape] = OrderedDict()

    def of(self, package: Path, manifest: Manifest) -> Shape:
        """Raises `CorruptPackage`, or what onnx and onnxruntime raise for what is no graph."""
        key = manifest.files[GRAPH_FILE].sha256
        shape = self._known.get(key)
        if shape is None:
            model = (package / GRAPH_FILE).read_bytes()
            # Whatever checked the package: all models that name this hash will compute with it.
            if hashlib.sha256(model).hexdigest() != key:
                raise CorruptPackage(f"{package}: {GRAPH_FILE} differs from the manifest's sha256.")
            graph = unpacked(model)
            shape = Shape(open_session(graph.model, "cpu"), graph, in_parts(model))
        remember(self._known, key, shape, most=REMEMBERED)
        return shape
