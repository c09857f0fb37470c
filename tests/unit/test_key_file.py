"""The file of API keys: what it may say, and what is said about one that says something else."""

from __future__ import annotations

import hashlib
import secrets
from pathlib import Path

import pytest

from gpt2serve import keys as command
from gpt2serve.api.key_file import KEY_PREFIX, ApiKey, digest_of, new_key, parse_keys
from gpt2serve.errors import SettingsError


def hashed(key: str) -> str:
    return "sha256:" + hashlib.sha256(key.encode()).hexdigest()


A, B = hashed("a"), hashed("b")


def test_all_that_a_line_can_say() -> None:
    text = f"""
# a comment
{A}  alice

  {B.upper().replace("SHA", "sha")}\tbob@example.org  models=bob/*,shared\trate=60000  \r
"""
    assert parse_keys(text, "keys") == {
        digest_of("a"): ApiKey(digest=digest_of("a"), name="alice"),
        digest_of("b"): ApiKey(
            digest=digest_of("b"),
            name="bob@example.org",
            rate=60000,
            models=("bob/*", "shared"),
        ),
    }


@pytest.mark.parametrize("text", ["", "\n\n", "# nobody\n"])
def test_a_file_may_be_empty(text: str) -> None:
    assert parse_keys(text, "keys") == {}


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("alice", "begins with no"),
        ("sha256:abc alice", "begins with no"),
        (f"{A}0 alice", "begins with no"),
        (A.replace("sha256", "md5") + " alice", "begins with no"),
        (A[7:] + " alice", "begins with no"),
        (hashed("") + " alice", "the hash of an empty key"),
        (A, "has no name"),
        (f"{A} .hidden", "has no name"),
        (f"{A} rate=60", "has no name"),
        (f"{A} al\u00efce", "has no name"),
        (f"{A} {'a' * 65}", "has no name"),
        (f"{A} alice bob", "neither rate= nor models="),
        (f"{A} alice rate", "has a rate= that"),
        (f"{A} alice speed=1", "neither rate= nor models="),
        (f"{A} alice # her key", "neither rate= nor models="),
        (f"{A} alice rate=", "has a rate= that"),
        (f"{A} alice rate=0", "has a rate= that"),
        (f"{A} alice rate=-1", "has a rate= that"),
        (f"{A} alice rate=1e3", "has a rate= that"),
        (f"{A} alice rate=1_000", "has a rate= that"),
        (f"{A} alice rate=\u0661", "has a rate= that"),
        (f"{A} alice rate={10**12 + 1}", "has a rate= that"),
        (f"{A} alice rate=1 rate=2", "has rate= twice"),
        (f"{A} alice models=", "has a models= that"),
        (f"{A} alice models=a,,b", "has a models= that"),
        (f"{A} alice models=a, b", "neither rate= nor models="),
        (f"{A} alice models=a/b/c", "has a models= that"),
        (f"{A} alice models=[ab]", "has a models= that"),
        (f"{A} alice models=a models=b", "has models= twice"),
        (f"{A} bob", "has the same name as line 2"),
        (f"{B} carol", "has the same key as line 2"),
    ],
)
def test_a_wrong_line_is_named_and_never_quoted(line: str, wrong: str) -> None:
    with pytest.raises(SettingsError, match="the file, line 3 ") as caught:
        parse_keys(f"# keys\n{B} bob\n{line}\n", "the file")
    assert wrong in str(caught.value)
    assert A[10:] not in str(caught.value)
    assert "alice" not in str(caught.value)


def test_a_key_that_was_not_hashed_is_not_shown() -> None:
    key = new_key()
    with pytest.raises(SettingsError) as caught:
        parse_keys(f"{key} alice", "the file")
    assert key not in str(caught.value)


@pytest.mark.parametrize(
    ("patterns", "may", "may_not"),
    [
        (None, ["a", "a/b"], []),
        (("a",), ["a"], ["A", "ab", "a/a", "b/a"]),
        (("me/*",), ["me/a", "me/b.c-d"], ["me", "me2/a", "you/a", "x/me/a"]),
        (("*",), ["a", "b.c"], ["me/a"]),
        (("*/*",), ["me/a"], ["a"]),
        (("gpt*-x",), ["gpt-x", "gpt2-x"], ["gpt2-xl", "gpt/a-x"]),
        (("a", "b/*"), ["a", "b/c"], ["b", "a/c"]),
        (("a.c",), ["a.c"], ["abc"]),
    ],
)
def test_patterns(patterns: tuple[str, ...] | None, may: list[str], may_not: list[str]) -> None:
    key = ApiKey(digest=b"", name="x", models=patterns)
    assert [model for model in may if not key.may_use(model)] == []
    assert [model for model in may_not if key.may_use(model)] == []


def test_the_example_of_the_docs() -> None:
    text = (Path(__file__).parents[2] / "docs" / "keys.md").read_text()
    example = text.split("# who may in", 1)[1].split("```", 1)[0]
    alice, bot = parse_keys(example, "docs").values()
    assert (alice.name, alice.rate, alice.models) == ("alice", None, None)
    assert (bot.rate, bot.models) == (60000, ("huggingtweets/*", "me/my-model"))


def test_new_keys_cannot_be_guessed() -> None:
    keys = {new_key() for _ in range(100)}
    assert len(keys) == 100
    for key in keys:
        assert key.startswith(KEY_PREFIX)
        assert len(key) == len(KEY_PREFIX) + len(secrets.token_urlsafe(32))
        assert all("!" <= character <= "~" for character in key)


def test_the_command_makes_a_line_for_the_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["alice", "--rate", "600", "--models", "me/*,x"]) == 0
    out, err = capsys.readouterr()
    key = err.strip()
    assert out.count("\n") == 1
    assert key not in out
    assert parse_keys(out, "keys") == {
        digest_of(key): ApiKey(digest=digest_of(key), name="alice", rate=600, models=("me/*", "x"))
    }


@pytest.mark.parametrize(
    ("arguments", "wrong"),
    [
        (["al ice"], "neither rate= nor models="),
        ([""], "has no name"),
        (["a\n# b"], "neither"),
        (["alice", "--rate", "many"], "has a rate= that"),
        (["alice", "--models", "a, b"], "neither"),
        (["alice", "--models", "a//b"], "has a models= that"),
    ],
)
def test_the_command_makes_no_wrong_line(
    arguments: list[str], wrong: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert wrong in err
    assert KEY_PREFIX not in err


def test_the_command_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert "--api-key-file" in text
    assert "Authorization: Bearer" in text
