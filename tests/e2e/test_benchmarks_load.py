"""The load test against real servers: ours, OpenAI's protocol, and servers that misbehave."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pty
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from litestar import Litestar, Request, Response, get, post
from litestar.params import JSONBody
from litestar.response import Stream

from benchmarks.common import servers
from benchmarks.common.model import ROOT
from benchmarks.common.worker import Worker
from benchmarks.load.__main__ import main
from benchmarks.load.client import Generate, Outcome, closed_loop, open_loop, single
from benchmarks.load.traffic import Ask, Mix, Traffic
from benchmarks.load.worker import Clients

MODELS = ["george-washington", "thomas-jefferson"]
LOADS = {
    "open": {"rate": 15.0},
    "closed": {"clients": 4.0},
    "bursts": {"burst": 5.0, "every": 0.5},
}


@pytest.fixture(scope="module")
def server(sample_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    log = tmp_path_factory.mktemp("load") / "server.log"
    with servers.gpt2serve(sample_store, log, precision="int8", threads=2) as running:
        yield running.url


@pytest.fixture(scope="module")
def clients() -> Iterator[Worker]:
    with Worker("benchmarks.load.worker:Clients", {}) as worker:
        yield worker


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize("load", LOADS)
def test_loops_from_a_process_of_their_own(
    server: str, clients: Worker, load: str, stream: bool
) -> None:
    figures = clients.call(
        "run",
        target={"server": server, "stream": stream, "exact": True},
        mix={"models": MODELS, "outputs": [12, 0, 12, 12]},
        load=LOADS[load],
        seconds=1.0,
    )
    assert figures["codes"] == {"ok": figures["requests"]}
    assert figures["requests"] >= 4
    assert figures["output_tokens"] == 12
    assert figures["tokens_per_second"] > 0
    assert figures["prompt_tokens"] >= 1
    assert figures["cold"]["share"] <= 1
    assert (figures["ttft_ms"] is not None) == stream
    if stream:
        assert figures["ttft_ms"]["p50"] < figures["end_to_end_ms"]["p50"]


def test_a_seed_gives_the_same_text(server: str) -> None:
    (ask,) = Traffic(Mix((MODELS[0],), seed=3)).at(Traffic(Mix(("-",))).rng.random(1))
    streamed, whole, again = (
        asyncio.run(single(Generate(server, stream=way), ask, timeout=30))
        for way in (True, False, False)
    )
    assert streamed.text == whole.text == again.text
    assert len(streamed.gaps) == streamed.tokens - 1


def test_the_command_line(server: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """It asks the server for its models, and loads those that are cold."""
    file = tmp_path / "new folder" / "figures.json"
    arguments = ["--url", server, "--rate", "20", "--duration", "1", "--json", str(file)]
    assert main([*arguments, "--header", "X-Secret: secret"]) == 0
    shown = capsys.readouterr()
    assert "3 models, Zipf 1" in shown.err
    assert "time to first token" in shown.out
    assert "errors:      none" in shown.out
    results = json.loads(file.read_text())
    assert results["figures"]["ok"] > 0
    assert not results["interrupted"]
    assert results["header"]["versions"]
    assert results["header"]["commit"]
    assert "--rate 20" in results["header"]["command"]
    assert "secret" not in file.read_text()


@pytest.mark.parametrize("place", [".", "file/figures.json"])
def test_a_file_that_cannot_be_written_is_refused_before_the_test(
    place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    url = f"http://127.0.0.1:{servers.free_port()}"
    assert main(["--url", url, "--json", str(tmp_path / place)]) == 2
    assert "The results cannot be written to" in capsys.readouterr().err


def test_results_are_shown_if_their_file_is_lost_meanwhile(
    server: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("benchmarks.common.results.save", full)
    arguments = ["--url", server, "--duration", "0.5", "--json", str(tmp_path / "f.json")]
    assert main(arguments) == 0
    shown = capsys.readouterr()
    assert "No space left" in shown.err
    assert '"figures": {' in shown.out


def test_fields_for_every_body_reach_the_server(
    server: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--url", server, "--extra-body", '{"no_such_field": 1}']) == 2
    assert "no_such_field" in capsys.readouterr().err


def test_a_live_line_from_the_clients_process(
    server: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("benchmarks.load.live._LOG_SECONDS", 0.2)
    load = {"rate": 10.0}
    figures = Clients().run(
        target={"server": server}, mix={"models": MODELS}, load=load, seconds=1.0, live=True
    )
    assert " in flight, " in capsys.readouterr().err
    assert figures["wall_seconds"] >= 0.9


@pytest.mark.parametrize(
    ("path", "arguments", "expected"),
    [
        ("", ["--models", "nobody"], "404: There is no model 'nobody'"),
        ("/nowhere", ["--models", MODELS[0], "--api", "completions"], "see --api"),
        ("/nowhere", ["--api", "completions"], "does not name the models"),
    ],
)
def test_what_cannot_be_tested_is_told_at_once(
    server: str,
    path: str,
    arguments: list[str],
    expected: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["--url", server + path, *arguments]) == 2
    assert expected in capsys.readouterr().err


def test_completions_are_an_api_to_test_with(
    server: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--api", "completions", "--duration", "0.5", "--clients", "2"]
    assert main(["--url", server, *arguments]) == 0
    assert "went well" in capsys.readouterr().out


def test_nobody_listens(capsys: pytest.CaptureFixture[str]) -> None:
    url = f"http://127.0.0.1:{servers.free_port()}"
    assert main(["--url", url]) == 2
    assert "Is the address right" in capsys.readouterr().err
    assert main(["--url", url, "--models", "m"]) == 2
    assert "does the server run" in capsys.readouterr().err


def test_ctrl_c_reports_what_was_done(server: str) -> None:
    """On a terminal, with its live line."""
    controller, terminal = pty.openpty()
    command = [sys.executable, "-m", "benchmarks.load", "--url", server, "--rate", "20"]
    with subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=terminal,
        text=True,
        # Tests that a shell has started in the background ignore it, and so would this process.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        os.close(terminal)
        seen = ""
        while " done," not in seen:
            seen += os.read(controller, 4096).decode()
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=20)
    os.close(controller)
    assert process.returncode == 0
    assert "interrupted after" in out
    assert "errors:      none" in out


# A server that speaks OpenAI's protocol.


def _chunk(text: str, **more: Any) -> dict[str, Any]:
    choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": None}
    return {"id": "c", "object": "text_completion", "model": "m", "choices": [choice], **more}


@post("/v1/completions", status_code=200)
async def completions(
    request: Request[Any, Any, Any], data: JSONBody[dict[str, Any]]
) -> Response[Any] | Stream:
    if request.headers.get("authorization") != "Bearer secret":
        error = {"message": "Incorrect API key", "type": "invalid_request_error", "code": None}
        return Response({"error": error}, status_code=401)
    count = data["max_tokens"]
    usage = {"prompt_tokens": 3, "completion_tokens": count, "total_tokens": count + 3}
    if not data["stream"]:
        return Response(_chunk(" word" * count, usage=usage))

    async def events() -> AsyncIterator[str]:
        for _ in range(count):
            await asyncio.sleep(0.01)
            yield f"data: {json.dumps(_chunk(' word'))}\r\n\r\n"
        yield f"data: {json.dumps(_chunk('', choices=[], usage=usage))}\n\ndata: [DONE]\n\n"

    return Stream(events(), media_type="text/event-stream")


@get("/v1/models")
async def models() -> dict[str, Any]:
    return {"object": "list", "data": [{"id": "m", "object": "model"}]}


@contextlib.contextmanager
def served(app: Any) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(app, log_level="warning", ws="none")
        running = uvicorn.Server(config)
        thread = threading.Thread(target=running.run, args=([listener],))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            running.should_exit = True
            thread.join()


@pytest.mark.parametrize("way", ["--stream", "--whole"])
def test_completions(way: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    fixed = ["--clients", "2", "--duration", "1", "--output-tokens", "8", "--json", str(file)]
    with served(Litestar([completions, models], logging_config=None)) as url:
        target = ["--url", url, "--api", "completions", way]
        assert main([*target, *fixed]) == 2
        refused = capsys.readouterr().err
        assert main([*target, *fixed, "--api-key", "secret"]) == 0
    assert "401: Incorrect API key" in refused
    assert "--api-key-file" in refused
    figures = json.loads(file.read_text())["figures"]
    assert (figures["prompt_tokens"], figures["output_tokens"]) == (3, 8)
    if way == "--stream":
        assert 8 < figures["gap_ms"]["p50"] < 40
    assert "not told by this server" in capsys.readouterr().out


def test_the_servers_to_compare_with_speak_it_too() -> None:
    pytest.importorskip("fastapi")
    from benchmarks.load.peers import wire

    class Model:
        async def generate(self, wish: wire.Wish) -> AsyncGenerator[str, None]:
            for _ in range(wish.max_tokens):
                wish.tokens += 1
                yield " word"

    with served(wire.create_app(Model(), "m")) as url:
        for stream in (True, False):
            target = {"server": url, "api": "completions", "stream": stream}
            outputs = [6, 0, 6, 6]
            figures = Clients().run(
                target=target,
                mix={"models": ["m"], "outputs": outputs},
                load={"clients": 2.0},
                seconds=0.3,
            )
            assert figures["codes"] == {"ok": figures["requests"]}
            assert figures["output_tokens"] == 6
            assert (figures["ttft_ms"] is not None) == stream


SAMPLE = ROOT / "samples" / MODELS[0]
#: Prompts and numbers of tokens: longer and shorter ones in both, and one of a single token.
MIXED = [("the", 5), ("the people of the time and that", 12), ("the people", 3), ("the one", 30)]


async def _pieces(model: Any, wish: Any) -> list[str]:
    return [piece async for piece in model.generate(wish)]


def _wish(prompt: str, tokens: int) -> Any:
    from benchmarks.load.peers import wire

    return wire.Wish(prompt, max_tokens=tokens, min_tokens=tokens, seed=1)


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sample model as CTranslate2 has it."""
    pytest.importorskip("ctranslate2")
    from ctranslate2.converters import TransformersConverter

    folder = tmp_path_factory.mktemp("ct2") / "model"
    TransformersConverter(str(SAMPLE)).convert(str(folder))
    return folder


@pytest.mark.parametrize("prompts", [MIXED, MIXED[1:]], ids=["one token", "more"])
def test_ctranslate2_gives_each_text_of_a_batch_its_own_length(
    converted: Path, prompts: list[tuple[str, int]]
) -> None:
    """And no token of a prompt, though CTranslate2 tells of some of them."""
    from benchmarks.load.peers.fastapi_ctranslate2 import CTranslate2

    wishes = [_wish(*each) for each in prompts]

    async def together() -> list[list[str]]:
        model = CTranslate2(converted, SAMPLE, threads=1)
        return await asyncio.gather(*(_pieces(model, wish) for wish in wishes))

    texts = asyncio.run(together())
    assert [len(pieces) for pieces in texts] == [tokens for _, tokens in prompts]
    assert [wish.tokens for wish in wishes] == [tokens for _, tokens in prompts]
    for (prompt, _), pieces in zip(prompts, texts, strict=True):
        words = prompt.split()[1:]
        assert not words or "".join(pieces).split()[: len(words)] != words


def test_transformers_stops_when_its_client_leaves() -> None:
    pytest.importorskip("fastapi")
    from benchmarks.load.peers.fastapi_transformers import Transformers

    endless, waiting, last = _wish("the", 900), _wish("the", 900), _wish("the", 5)

    async def leave(model: Any) -> tuple[float, list[str]]:
        pieces = model.generate(endless)
        await anext(pieces)
        queued = asyncio.create_task(_pieces(model, waiting))
        await asyncio.sleep(0)
        queued.cancel()
        await pieces.aclose()
        begin = time.monotonic()
        text = await _pieces(model, last)
        return time.monotonic() - begin, text

    seconds, text = asyncio.run(leave(Transformers(SAMPLE, threads=1)))
    assert "".join(text)
    assert last.tokens == 5
    assert endless.tokens < 900
    assert waiting.tokens == 0
    assert seconds < 1


def test_transformers_that_fails_does_not_let_its_client_wait() -> None:
    pytest.importorskip("fastapi")
    from benchmarks.load.peers.fastapi_transformers import Transformers

    async def ask() -> None:
        await asyncio.wait_for(_pieces(Transformers(SAMPLE, threads=1), _wish("the", 0)), 20)

    with pytest.raises(ValueError, match="max_new_tokens"):
        asyncio.run(ask())


# Servers that misbehave.

Handler = Callable[[asyncio.StreamWriter], Awaitable[None]]
_TOKEN = b'data: {"index": 0, "token": {"id": 1, "text": " a"}}\n\n'


def _status(line: str, body: bytes = b"{}") -> Handler:
    async def answer(writer: asyncio.StreamWriter) -> None:
        head = f"HTTP/1.1 {line}\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)

    return answer


def _stream(*parts: bytes, pause: float = 0.0) -> Handler:
    """Each part in a write of its own; the connection's end is the end of the answer."""

    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(pause)

    return answer


async def _never(writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(30)


async def _hang_up(writer: asyncio.StreamWriter) -> None:
    writer.close()


_ABORTED = b'data: {"error": {"code": "aborted", "status": 503}}\n\n'


async def _ask(handler: Handler, count: int = 1, **options: Any) -> list[Outcome]:
    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]
        await reader.readexactly(int(length))
        # Python 3.11 logs a handler that is cancelled when the loop ends.
        with contextlib.suppress(asyncio.CancelledError):
            await handler(writer)
        writer.close()

    listening = await asyncio.start_server(connected, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    asks = [Ask(0.05 * n, "m", "the", 2, 0) for n in range(count)]
    options = {"timeout": 0.5} | options
    outcomes = await open_loop(Generate(f"http://127.0.0.1:{port}"), asks, **options)
    listening.close()
    return outcomes


@pytest.mark.parametrize(
    ("handler", "code", "tokens", "detail"),
    [
        (_status("429 Too Many", b'{"detail": "Too much."}'), "429", 0, "Too much."),
        (_status("503 No", b'{"error": {"message": "Draining."}}'), "503", 0, "Draining."),
        (_status("502 Bad Gateway", b"<html>"), "502", 0, "<html>"),
        (_stream(_TOKEN, _TOKEN), "broken", 2, "without [DONE]"),
        (_stream(_TOKEN, _ABORTED), "aborted", 1, ""),
        (_stream(b"data: {oops\n\n"), "broken", 0, "JSONDecodeError"),
        (_stream(b'data: {"finish_reason": "eos"}\n\n'), "broken", 0, "KeyError"),
        (_stream(b"data: 5\n\n"), "broken", 0, "TypeError"),
        (_stream(*[_TOKEN] * 9, pause=0.1), "timeout", 5, ""),
        (_never, "timeout", 0, ""),
        (_hang_up, "broken", 0, "ServerDisconnected"),
    ],
)
def test_every_failure_has_its_code(handler: Handler, code: str, tokens: int, detail: str) -> None:
    (outcome,) = asyncio.run(_ask(handler))
    assert outcome.code == code
    assert outcome.tokens == pytest.approx(tokens, abs=1 if code == "timeout" else 0)
    assert detail in outcome.detail


def test_events_that_come_in_pieces() -> None:
    whole = b'data: {"finish_reason": "eos", "text": "a"}\n\ndata: [DONE]\n\n'
    stream = _TOKEN + whole
    pieces = [stream[n : n + 7] for n in range(0, len(stream), 7)]
    (outcome,) = asyncio.run(_ask(_stream(*pieces, pause=0.002)))
    assert (outcome.code, outcome.tokens, outcome.text) == ("ok", 1, "a")


def test_a_slow_server_does_not_slow_an_open_loop() -> None:
    outcomes = asyncio.run(_ask(_never, count=5))
    assert [one.code for one in outcomes] == ["timeout"] * 5
    assert max(one.sent - one.due for one in outcomes) < 0.4
    assert min(one.ended - one.due for one in outcomes) > 0.45


def test_what_is_cut_off_is_unfinished() -> None:
    begin = time.monotonic()
    outcomes = asyncio.run(_ask(_never, count=2, timeout=20, end=0.3))
    assert [one.code for one in outcomes] == ["unfinished"] * 2
    assert time.monotonic() - begin < 5


def test_no_connection() -> None:
    api = Generate(f"http://127.0.0.1:{servers.free_port()}")
    asks = iter([Ask(0, "m", "the", 2, 0)])
    (outcome,) = asyncio.run(closed_loop(api, asks, clients=3, seconds=1, timeout=1))
    assert outcome.code == "connect"
