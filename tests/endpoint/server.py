"""A small OpenAI-compatible server that behaves as told, well or badly; a process of its own.

    python tests/endpoint/server.py --behaviours ok,stall --takes ids,pin,chunks,usage

prints its port. How a completion is answered follows from its length: five tokens in the first way
of ``--behaviours``, six in the second, and so on, over and over; four and fewer (probes) as
``--probes`` says, and the list of models as ``--list`` does. The ways are those of unruly.py, and
the ``do_`` methods here. ``GET /log`` returns every other body with the time at which it came. One
process can be many servers: ``/as/per-chunk=3&takes=ids&n=7/v1`` is one with those options, and a
log, of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import socket
import ssl
import struct
import sys
import threading
import time
from urllib.parse import parse_qsl

from unruly import DONE, END, HEAD, WAYS, Call, event, piece

PROBE_TOKENS = 4


def plain(status: int, document: object) -> bytes:
    body = json.dumps(document).encode()
    head = f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    return head.encode() + b"\r\n\r\n" + body


class Refusal(Exception):
    pass


class Server:
    def __init__(self, options: argparse.Namespace) -> None:
        self.behaviours = options.behaviours.split(",")
        self.takes = set(options.takes.split(","))
        self.per_chunk, self.delay = options.per_chunk, options.delay_ms / 1000
        self.key, self.models, self.added = options.key, options.models.split(","), options.added
        self.probes, self.list = options.probes, options.list
        self.per_word, self.by = options.per_word, options.by
        self.log: list[tuple[dict[str, object], int]] = []

    async def answer(
        self,
        path: str,
        headers: dict[str, str],
        data: bytes,
        now: int,
        writer: asyncio.StreamWriter,
    ) -> bool:
        if self.key and headers.get("authorization") != f"Bearer {self.key}":
            said = headers.get("authorization", "none")
            writer.write(plain(401, {"error": {"message": f"wrong key {said}"}}))
        elif path == "/log":
            writer.write(plain(200, self.log))
        elif path == "/v1/models" and self.list:
            return await WAYS[self.list](Call(writer, [], headers, self.delay))
        elif path == "/v1/models":
            known = [{"id": name, "max_model_len": 4096} for name in self.models]
            writer.write(plain(200, {"data": known}))
        elif path == "/v1/completions" or (path == "/v1/chat/completions" and "chat" in self.takes):
            return await self.complete(json.loads(data), "chat" in path, headers, now, writer)
        else:
            writer.write(plain(404, {"detail": "Not Found"}))
        await writer.drain()
        return True

    def check(self, body: dict[str, object], chat: bool) -> int:
        """How many prompt tokens there are. Raises Refusal for words that are not taken."""
        options = body.get("stream_options", {})
        for name, given in (
            ("pin", "min_tokens" in body),
            ("usage", "stream_options" in body),
            ("chunks", "continuous_usage_stats" in options),  # type: ignore[operator]
            ("ids", isinstance(body.get("prompt"), list)),
            ("text", chat or isinstance(body.get("prompt"), str)),
        ):
            if given and name not in self.takes:
                raise Refusal(f"no {name} here")
        prompt = body["messages"][0]["content"] if chat else body["prompt"]  # type: ignore[index]
        if isinstance(prompt, list):
            return len(prompt) + self.added
        return len(str(prompt).split()) * self.per_word + self.added

    async def complete(
        self,
        body: dict[str, object],
        chat: bool,
        headers: dict[str, str],
        now: int,
        writer: asyncio.StreamWriter,
    ) -> bool:
        count = int(str(body["max_tokens"]))
        try:
            prompt = self.check(body, chat)
        except Refusal as refusal:
            writer.write(plain(422, {"detail": [{"msg": str(refusal)}]}))
            return True
        behaviour = self.probes
        if count > PROBE_TOKENS:
            place = prompt if self.by == "prompt" else count - PROBE_TOKENS - 1
            behaviour = self.behaviours[place % len(self.behaviours)]
            self.log.append((body, now))
        documents = self.chunks(body, chat, prompt, count, behaviour)
        if behaviour in WAYS:
            return await WAYS[behaviour](Call(writer, documents, headers, self.delay))
        chunks = list(map(event, documents))
        return await getattr(self, f"do_{behaviour}", self.do_ok)(writer, chunks)

    def chunks(
        self, body: dict[str, object], chat: bool, prompt: int, count: int, behaviour: str
    ) -> list[dict[str, object]]:
        options = body.get("stream_options", {})
        count = count // 2 if behaviour == "short" else count
        per, made = self.per_chunk if count > PROBE_TOKENS else 1, 0
        found: list[dict[str, object]] = []
        while made < count:
            made, text = min(made + per, count), " word" * min(per, count - made)
            if made == count and behaviour == "empty_last":
                text = ""
            choice: dict[str, object] = {"index": 0, "finish_reason": None, "text": text}
            if chat:
                choice["delta"] = {"content": choice.pop("text")}
            if made == count:
                choice["finish_reason"] = "length"
            chunk: dict[str, object] = {"choices": [choice]}
            if "continuous_usage_stats" in options:  # type: ignore[operator]
                chunk["usage"] = {"prompt_tokens": prompt, "completion_tokens": made}
            found.append(chunk)
        if chat:
            found.insert(0, {"choices": [{"delta": {"role": "assistant", "content": ""}}]})
        if "stream_options" in body and behaviour != "nousage":
            usage = {"prompt_tokens": prompt, "completion_tokens": count}
            usage["prompt_tokens_details"] = {"cached_tokens": prompt // 2}  # type: ignore[assignment]
            found.append({"choices": [], "usage": usage})
        return found

    async def do_ok(self, writer: asyncio.StreamWriter, chunks: list[bytes]) -> bool:
        if not self.delay:
            writer.write(HEAD + piece(b"".join(chunks) + DONE) + END)
            await writer.drain()
            return True
        writer.write(HEAD)
        for chunk in chunks:
            writer.write(piece(chunk))
            await asyncio.sleep(self.delay)
        writer.write(piece(DONE))
        await asyncio.sleep(self.delay)
        writer.write(END)
        return True

    async def do_split(self, writer: asyncio.StreamWriter, chunks: list[bytes]) -> bool:
        """Everything in pieces of seven bytes, each a segment of its own."""
        data = HEAD + b"".join(map(piece, chunks)) + piece(DONE) + END
        for start in range(0, len(data), 7):
            writer.write(data[start : start + 7])
            await asyncio.sleep(0.0002)
        return True

    async def do_crlf(self, writer: asyncio.StreamWriter, chunks: list[bytes]) -> bool:
        """The other line ends, comments, other fields; a \r and its \n in two segments."""
        writer.write(HEAD + piece(b": ping\r\n\r\nevent: message\r\nid: 1\r\n"))
        for chunk in chunks:
            data = chunk.replace(b"\n", b"\r\n")
            writer.write(piece(data[:-3]))
            await asyncio.sleep(0.002)
            writer.write(piece(data[-3:]))
        writer.write(piece(DONE) + END)
        return True

    async def do_stall(self, writer: asyncio.StreamWriter, chunks: list[bytes]) -> bool:
        writer.write(HEAD + b"".join(map(piece, chunks[:2])))
        await asyncio.sleep(30)
        return False

    async def do_silent(self, writer: asyncio.StreamWriter, chunks: list[bytes]) -> bool:
        await asyncio.sleep(30)
        return False

    async def do_reset(self, writer: asyncio.StreamWriter, chunks: list[bytes]) -> bool:
        writer.write(HEAD + piece(chunks[0]))
        await writer.drain()
        await asyncio.sleep(0.02)
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
        return False

    async def do_early(self, writer: asyncio.StreamWriter, chunks: list[bytes]) -> bool:
        """The connection is closed in the middle."""
        writer.write(HEAD + piece(chunks[0]))
        return False

    async def do_unfinished(self, writer: asyncio.StreamWriter, chunks: list[bytes]) -> bool:
        """The answer ends as HTTP should, but says neither why nor [DONE]."""
        writer.write(HEAD + piece(chunks[0]) + END)
        return True

    async def do_undone(self, writer: asyncio.StreamWriter, chunks: list[bytes]) -> bool:
        """No [DONE]: the finish reason has to do."""
        writer.write(HEAD + piece(b"".join(chunks)) + END)
        return True

    async def do_garbage(self, writer: asyncio.StreamWriter, chunks: list[bytes]) -> bool:
        writer.write(HEAD + piece(chunks[0] + b'data: {"choices": [[\xff\n\n') + piece(DONE) + END)
        return True

    async def do_nothttp(self, writer: asyncio.StreamWriter, chunks: list[bytes]) -> bool:
        writer.write(b"SSH-2.0-OpenSSH_9.6\r\n")
        await asyncio.sleep(1)
        return False

    async def do_event(self, writer: asyncio.StreamWriter, chunks: list[bytes]) -> bool:
        said = b'data: {"error": {"message": "out of memory", "code": 500}}\n\n'
        writer.write(HEAD + piece(chunks[0] + said) + piece(DONE) + END)
        return True

    async def do_nostream(self, writer: asyncio.StreamWriter, chunks: list[bytes]) -> bool:
        writer.write(plain(200, {"choices": [{"text": "all at once", "finish_reason": "length"}]}))
        return True

    async def do_busy(self, writer: asyncio.StreamWriter, chunks: list[bytes]) -> bool:
        writer.write(plain(429, {"error": {"message": "too many requests"}}))
        return True

    async def do_broken(self, writer: asyncio.StreamWriter, chunks: list[bytes]) -> bool:
        writer.write(plain(500, {"error": {"message": "the engine is dead"}}))
        return True


class Servers:
    """All that one process is."""

    def __init__(self) -> None:
        self.known: dict[str, Server] = {"": Server(parse(sys.argv[1:]))}

    def find(self, path: str) -> tuple[Server, str]:
        if not path.startswith("/as/"):
            return self.known[""], path
        _, _, name, rest = path.split("/", 3)
        if name not in self.known:
            words = [word for pair in parse_qsl(name) for word in (f"--{pair[0]}", pair[1])]
            self.known[name] = Server(parse(words))
        return self.known[name], f"/{rest}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        again = True
        try:
            while again:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                now = time.perf_counter_ns()
                first, *lines = head.split("\r\n")
                pairs = (line.partition(":") for line in lines)
                headers = {name.lower(): value.strip() for name, _, value in pairs if value}
                data = await reader.readexactly(int(headers.get("content-length", 0)))
                server, path = self.find(first.split()[1])
                again = await server.answer(path, headers, data, now, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


def parse(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--behaviours", default="ok")
    parser.add_argument("--by", default="answer", help="whose length chooses: answer or prompt")
    parser.add_argument("--probes", default="ok")
    parser.add_argument("--list", default="")
    parser.add_argument("--takes", default="ids,text,pin,chunks,usage,chat")
    parser.add_argument("--per-chunk", type=int, default=1)
    parser.add_argument("--delay-ms", type=float, default=0.0)
    parser.add_argument("--added", type=int, default=0)
    parser.add_argument("--per-word", type=int, default=1)
    parser.add_argument("--models", default="made-up")
    parser.add_argument("--key", default="")
    parser.add_argument("--certificate", default="")
    parser.add_argument("--n", default="", help="tells servers of equal options apart")
    return parser.parse_args(words)


async def main() -> None:
    options, context = parse(sys.argv[1:]), None
    if options.certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(options.certificate)
    made = await asyncio.start_server(Servers().serve, "127.0.0.1", 0, ssl=context, backlog=1024)
    print(made.sockets[0].getsockname()[1], flush=True)
    await asyncio.Event().wait()


def end_with_parent() -> None:
    """Whoever started this holds the other end of stdin."""
    sys.stdin.read()
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    threading.Thread(target=end_with_parent, daemon=True).start()
    asyncio.run(main())
