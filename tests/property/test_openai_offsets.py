"""Offsets of tokens, whatever the tokens are and however their text is cut and cleaned."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from gpt2serve.api.openai.logprobs import Offsets
from gpt2serve.engine.text import TextStream

PIECES = st.sampled_from(
    [" ", "a", "n't", "'", "'s", ".", ",", "n", "t", "\u20ac", "\n", "s", "v", "e", " '", " ."]
)


@st.composite
def spellings(draw: st.DrawFn) -> list[bytes]:
    """Bytes of text, cut anywhere, in the middle of characters too."""
    spelled = "".join(draw(st.lists(PIECES, max_size=20))).encode()
    cuts = draw(st.lists(st.integers(0, len(spelled)), max_size=12))
    edges = [0, *sorted(cuts), len(spelled)]
    return [spelled[a:b] for a, b in pairwise(edges)]


@given(spellings(), st.lists(st.sampled_from(["\n", "at", "."]), max_size=1))
def test_offsets_of_a_stream_are_those_of_the_whole(tokens: list[bytes], stop: list[str]) -> None:
    stream = TextStream(tokens.__getitem__, stop)
    piecewise, whole = Offsets(), Offsets()
    streamed: list[int] = []
    for number, spelled in enumerate(tokens):
        piecewise.token(spelled)
        whole.token(spelled)
        piecewise.text(stream.push([number]))
        streamed += piecewise.known()
        assert all(offset <= len(stream.text) for offset in streamed)
    piecewise.text(stream.finish())
    streamed += piecewise.known(final=True)
    whole.text(stream.text)
    assert streamed == whole.known(final=True)
    assert len(streamed) == len(tokens)
    assert streamed == sorted(streamed)


@given(spellings())
def test_a_token_begins_where_its_offset_says(tokens: list[bytes]) -> None:
    stream = TextStream(tokens.__getitem__)
    offsets = Offsets()
    for spelled in tokens:
        offsets.token(spelled)
    text = stream.push(range(len(tokens))) + stream.finish()
    offsets.text(text)
    for number, offset in enumerate(offsets.known(final=True)):
        before = b"".join(tokens[:number]).decode(errors="ignore")
        # Spaces aside, which are what is cleaned up.
        assert text[:offset].replace(" ", "") == before.replace(" ", "")
