"""Text that comes out piece by piece is the text that would come out at once."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers

from gpt2serve.engine import tokenizer
from gpt2serve.engine.text import CLEAN_UP, TextStream, clean_up
from gpt2serve.engine.tokenizer import Tokenizer, TokenizerCache
from gpt2serve.errors import CorruptPackage
from gpt2serve.package import sha256_of

SAMPLES = Path(__file__).parents[2] / "samples"
NAMES = ("george-washington", "thomas-jefferson", "ronald-reagan")
QUICK = settings(deadline=None, derandomize=True, max_examples=300)

#: What clean-up looks for, and what it can be made of.
CRUMBS = [
    *(old for old, _ in CLEAN_UP),
    " ",
    "'",
    " '",
    "n't",
    "s",
    "ve",
    ".",
    "a",
    "\n",
    "é",
    "🎉",
]
texts = st.one_of(st.text(), st.lists(st.sampled_from(CRUMBS)).map("".join))


@st.composite
def splits(draw: Any, data: st.SearchStrategy[bytes]) -> list[bytes]:
    """Bytes cut into tokens anywhere, within characters too; tokens may be empty."""
    whole = draw(data)
    cuts = sorted(draw(st.lists(st.integers(0, len(whole)), max_size=30)))
    return [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]


def each_byte(text: str) -> list[bytes]:
    return [bytes([byte]) for byte in text.encode()]


def stream_of(tokens: list[bytes], stop: tuple[str, ...] = ()) -> TextStream:
    return TextStream(tokens.__getitem__, stop)


def run(tokens: list[bytes], stop: tuple[str, ...] = ()) -> tuple[str, TextStream]:
    """All pieces together, as a reader sees them; checks that none is taken back."""
    stream = stream_of(tokens, stop)
    seen = ""
    for n in range(len(tokens)):
        seen += stream.push([n])
        assert stream.text == seen
        if stream.stopped:
            return seen, stream
    seen += stream.finish()
    assert stream.text == seen
    return seen, stream


# -- clean-up ---------------------------------------------------------------------------------


@QUICK
@given(texts)
def test_clean_up_is_transformers_own(text: str) -> None:
    transformers = pytest.importorskip("transformers")
    assert clean_up(text) == transformers.PreTrainedTokenizerBase.clean_up_tokenization(text)


@QUICK
@given(splits(texts.map(str.encode)))
@example(each_byte("it ' s"))
@example(each_byte("a ' ' ' s"))
@example(each_byte("do n ' t  n't 've"))
@example(each_byte("a ' ."))
@example(each_byte("x ' '  've"))
def test_pieces_make_the_whole_text(tokens: list[bytes]) -> None:
    whole = b"".join(tokens).decode()
    seen, _ = run(tokens)
    assert seen == clean_up(whole)
    assert "\ufffd" not in seen or "\ufffd" in whole


@QUICK
@given(splits(st.one_of(st.binary(), texts.map(str.encode).map(lambda raw: raw[1:] + raw[:1]))))
def test_bytes_that_are_no_text_become_replacement_characters(tokens: list[bytes]) -> None:
    seen, _ = run(tokens)
    assert seen == clean_up(b"".join(tokens).decode(errors="replace"))


def test_text_comes_as_soon_as_it_is_certain() -> None:
    tokens = ["a", " b", " c", " ", "d", "\u00e9"]
    stream = stream_of([token.encode() for token in tokens])
    assert [stream.push([n]) for n in range(len(tokens))] == ["a", " b", " c", "", " d", "é"]
    assert stream.finish() == ""


def test_half_a_character_is_held_back() -> None:
    stream = stream_of(each_byte("é🎉"))
    assert [stream.push([n]) for n in range(6)] == ["", "é", "", "", "", "🎉"]
    cut = stream_of(each_byte("🎉")[:2])
    assert cut.push([0, 1]) == ""
    assert cut.finish() == "\ufffd"


@QUICK
@given(splits(texts.map(str.encode)), st.integers(1, 5))
def test_several_tokens_at_once_change_nothing(tokens: list[bytes], step: int) -> None:
    stream = stream_of(tokens)
    pieces = [
        stream.push(range(n, min(n + step, len(tokens)))) for n in range(0, len(tokens), step)
    ]
    assert "".join(pieces) + stream.finish() == run(tokens)[0]


# -- stop strings -----------------------------------------------------------------------------


def cut_plainly(tokens: list[bytes], stop: tuple[str, ...]) -> tuple[str, bool]:
    """Look at the whole text after each token; no window, no holding back."""
    raw = b""
    text = ""
    for token in tokens:
        raw += token
        # As far as characters are complete: half of one is not text yet.
        text = raw.decode(errors="ignore")
        found = [text.find(one) for one in stop if one in text]
        if found:
            return clean_up(text[: min(found)]), True
    return clean_up(text), False


stops = st.lists(
    st.one_of(st.text("ab. '\n", min_size=1, max_size=5), st.text(min_size=1, max_size=2)),
    min_size=1,
    max_size=4,
).map(tuple)


@QUICK
@given(splits(st.one_of(st.text("ab. '\ns"), texts).map(str.encode)), stops)
@example([b"xab", b"c"], ("abc", "ab"))
@example([b"a", b"b", b"c", b"d"], ("abcd", "bc"))
@example([b"aab"], ("ab", "aab"))
@example([b"xaxb"], ("a", "b"))
@example([b"xaxb"], ("b", "a"))
@example([b"a", b"a", b"a", b"b"], ("aab",))
@example([b"hello ", b".", b"x"], (" .",))
@example(each_byte("ab🎉c"), ("🎉",))
@example(each_byte("x\n\ny"), ("\n\n", "\n"))
def test_the_text_ends_where_the_first_stop_string_begins(
    tokens: list[bytes], stop: tuple[str, ...]
) -> None:
    seen, stream = run(tokens, stop)
    assert (seen, stream.stopped) == cut_plainly(tokens, stop)


@QUICK
@given(st.text("ab", max_size=40), st.text("ab", min_size=1, max_size=6), st.data())
def test_where_the_tokens_end_does_not_matter(text: str, stop: str, data: st.DataObject) -> None:
    tokens = data.draw(splits(st.just(text.encode())))
    assert run(tokens, (stop,))[0] == text.split(stop)[0]


def test_what_may_become_a_stop_string_is_held_back() -> None:
    tokens = [b"one", b" ST", b"O", b"X ", b"STO", b"P", b"tail"]
    stream = stream_of(tokens, ("STOP",))
    pieces = [stream.push([n]) for n in range(6)]
    assert pieces[:2] == ["one", ""]
    assert "".join(pieces) == "one STOX "
    assert stream.stopped
    assert stream.push([6]) == ""
    assert stream.finish() == ""


def test_the_end_gives_what_was_held_back() -> None:
    stream = stream_of([b"one ST"], ("STOP",))
    assert stream.push([0]) == "one"
    assert stream.finish() == " ST"
    assert not stream.stopped


# -- the tokenizer ----------------------------------------------------------------------------


@pytest.fixture(scope="module", params=NAMES)
def file(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample's tokenizer file, made of vocabulary and merges as the sample has them."""
    folder = SAMPLES / str(request.param)
    inner = tokenizers.Tokenizer(
        models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt"))
    )
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(["<|endoftext|>"])
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    inner.save(str(path))
    return path


HARD = "naïve 😀👩‍👩‍👧 日本語 \x00\x1f\x7f\u200b\u2028 don't  \t\r\n ﷽ \U0010ffff"


@settings(QUICK, max_examples=100)
@given(text=st.one_of(st.text(), texts, st.text("日本語😀\x00\x1f é\u0301")))
@example(text=HARD)
def test_bytes_of_tokens_are_what_the_tokenizer_decodes(file: Path, text: str) -> None:
    ours, theirs = loaded(file)
    ids = ours.encode(text)
    assert ids == theirs.encode(text).ids
    assert b"".join(map(ours.token_bytes, ids)).decode() == text
    assert theirs.decode(ids) == text


@settings(QUICK, max_examples=100)
@given(data=st.data())
def test_any_tokens_decode_as_in_the_tokenizer(file: Path, data: st.DataObject) -> None:
    # Sampled tokens need not be text: any order of them, characters cut anywhere.
    ours, theirs = loaded(file)
    ids = data.draw(st.lists(st.integers(0, theirs.get_vocab_size() - 1), max_size=30))
    stream = TextStream(ours.token_bytes)
    seen = "".join(stream.push([token]) for token in ids) + stream.finish()
    assert seen == clean_up(theirs.decode(ids, skip_special_tokens=True))


_loaded: dict[Path, tuple[Tokenizer, Any]] = {}


def loaded(file: Path) -> tuple[Tokenizer, Any]:
    if file not in _loaded:
        _loaded[file] = (Tokenizer(file), tokenizers.Tokenizer.from_file(str(file)))
    return _loaded[file]


def test_special_tokens_are_known_and_have_no_bytes(file: Path) -> None:
    ours, theirs = loaded(file)
    end = theirs.token_to_id("<|endoftext|>")
    ids = ours.encode("<|endoftext|>one<|endoftext|>")
    assert ids[0] == ids[-1] == end
    assert ours.token_bytes(end) == b""
    assert b"".join(map(ours.token_bytes, ids)) == b"one"
    # An id beyond the vocabulary (a padded embedding) says nothing rather than failing.
    assert ours.token_bytes(theirs.get_vocab_size() + 5) == b""


def test_every_single_token_has_bytes(file: Path) -> None:
    ours, theirs = loaded(file)
    vocabulary = json.loads(file.read_text(encoding="utf-8"))["model"]["vocab"]
    every = {bytes([n]) for n in range(256)}
    made = {ours.token_bytes(token) for token in vocabulary.values()}
    assert every <= made
    assert [ours.token_bytes(n) for n in range(theirs.get_vocab_size())].count(b"") == 1


def test_a_long_text_lets_other_threads_work(file: Path) -> None:
    """Or whoever sends one stops all models, and all clients, while it is tokenised."""
    ours, theirs = loaded(file)
    text = "We the people \U0001f600<|endoftext|>" * 4000
    encoded: list[list[int]] = []
    thread = threading.Thread(target=lambda: encoded.append(ours.encode(text)))
    turns = 0
    thread.start()
    while thread.is_alive():
        time.sleep(0.001)
        turns += 1
    assert turns > 5
    assert encoded == [theirs.encode(text).ids]


def test_padding_and_truncation_of_the_file_are_ignored(file: Path, tmp_path: Path) -> None:
    inner = tokenizers.Tokenizer.from_file(str(file))
    inner.enable_truncation(2)
    inner.enable_padding(length=9)
    inner.save(str(tmp_path / "other.json"))
    ids = Tokenizer(tmp_path / "other.json").encode("We the people of the union")
    assert ids == loaded(file)[0].encode("We the people of the union")
    assert len(ids) > 2


@pytest.mark.parametrize("content", ["", "{}", "no json"])
def test_a_bad_tokenizer_file_is_a_corrupt_package(tmp_path: Path, content: str) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(content)
    with pytest.raises(CorruptPackage, match="tokenizer"):
        Tokenizer(path)
    with pytest.raises(CorruptPackage):
        Tokenizer(tmp_path / "missing.json")


def test_models_of_one_vocabulary_share_a_tokenizer(file: Path) -> None:
    cache = TokenizerCache()
    first = cache.get(file, sha256_of(file))
    assert cache.get(file, sha256_of(file)) is first


def test_a_file_that_is_not_the_named_one_is_refused(file: Path) -> None:
    # Otherwise a damaged package would lend its tokenizer to every model that shares the hash.
    with pytest.raises(CorruptPackage):
        TokenizerCache().get(file, "0" * 64)


def test_a_tokenizer_is_remembered_between_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    # Reading one takes tens of milliseconds; a model that answers one user at a time must not.
    read: list[Path] = []

    class Counted:
        def __init__(self, path: Path) -> None:
            read.append(path)

    monkeypatch.setattr(tokenizer, "Tokenizer", Counted)
    monkeypatch.setattr(tokenizer, "sha256_of", lambda path: path.name)
    cache = TokenizerCache()
    for name in ("a", "a", "b", "a"):
        cache.get(Path(name), name)
    assert read == [Path("a"), Path("b")]
    for n in range(tokenizer.REMEMBERED - 1):
        cache.get(Path(str(n)), str(n))
    cache.get(Path("a"), "a")
    cache.get(Path("b"), "b")
    assert read.count(Path("a")) == 1, "the one used last is kept"
    assert read.count(Path("b")) == 2, "there is a bound"
