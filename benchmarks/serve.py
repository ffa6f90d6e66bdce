"""Load on `varlora serve`: how many requests a second, how long they take, and whether one answer is wrong or lost.

    python -m benchmarks.serve MODEL                    (a causal language model's folder; minutes on a CPU)

Trains one step on MODEL, serves the run, and asks it from 64 clients at a time (httpx, AsyncOpenAI), each answer
compared with the one that is given alone. Beside it the same model and adapter served by plain transformers, one
request at a time, behind the same HTTP server. Then again while other clients leave in the middle of their requests
and send bodies that are malformed or too large. Everything stays on the loopback.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import openai
import torch
from benchmarks.measuring import parser_of, show

WORDS = ("film", "plot", "actor", "scene", "score", "ending", "joke", "camera", "story", "cast")
NEW_TOKENS = 24
TOLERANCE = 1e-4


@dataclass
class Outcome:
    """What a load came to.

    Attributes:
        seconds: of every answered request.
        wrong: answers that differ from those given alone.
        lost: requests without an answer, by what came in its place.
        elapsed: of the whole load.
    """

    seconds: list[float] = field(default_factory=list)
    wrong: int = 0
    lost: Counter[str] = field(default_factory=Counter)
    elapsed: float = 0.0

    def add(self, other: Outcome) -> None:
        """Takes in another load of the same kind."""
        self.seconds += other.seconds
        self.wrong += other.wrong
        self.lost += other.lost
        self.elapsed += other.elapsed

    def row(self, name: str, others: Counter[str]) -> dict[str, Any]:
        """A row of the table.

        Args:
            name: of what was asked.
            others: what those who misbehaved meanwhile were told.
        """
        ordered = sorted(self.seconds) or [math.nan]
        median, p95 = (ordered[min(int(share * len(ordered)), len(ordered) - 1)] for share in (0.5, 0.95))
        return {
            "server": name,
            "requests": len(self.seconds),
            "a second": f"{len(self.seconds) / self.elapsed:.1f}",
            "median s": f"{median:.2f}",
            "p95 s": f"{p95:.2f}",
            "wrong": self.wrong,
            "lost": dict(self.lost) or 0,
            "others": dict(others) or "",
        }


def texts(count: int) -> list[str]:
    """Texts of one to twelve words."""
    generator = random.Random(0)
    return [" ".join(generator.choices(WORDS, k=generator.randint(1, 12))) for _ in range(count)]


async def load(
    ask: Callable[[str], Awaitable[Any]], rows: Sequence[str], same: Callable[[str, Any], bool], *, clients: int
) -> Outcome:
    """Asks every row, so many at a time.

    Args:
        ask: one request.
        rows: what is asked.
        same: whether an answer is the right one.
        clients: how many ask at a time.
    """
    outcome, left = Outcome(), list(rows)

    async def client() -> None:
        while left:
            row = left.pop()
            began = time.perf_counter()
            try:
                answer = await ask(row)
            except (httpx.HTTPError, openai.OpenAIError) as error:
                outcome.lost[f"{type(error).__name__}: {error}"] += 1
                continue
            outcome.seconds.append(time.perf_counter() - began)
            outcome.wrong += not same(row, answer)

    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    outcome.elapsed = time.perf_counter() - began
    return outcome


@dataclass(frozen=True)
class Asker:
    """Clients of a server.

    Attributes:
        http: for `/v1/classify`.
        api: for texts.
        model: which is asked.
    """

    http: httpx.AsyncClient
    api: openai.AsyncOpenAI
    model: str

    @classmethod
    def of(cls, url: str, model: str) -> Asker:
        """Clients with connections enough."""
        limits = httpx.Limits(max_connections=256)
        http = httpx.AsyncClient(base_url=url, timeout=600, limits=limits, verify=False)
        own = httpx.AsyncClient(timeout=600, limits=limits, verify=False)
        return cls(
            http, openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", http_client=own, max_retries=0), model
        )

    async def classify(self, text: str) -> dict[str, float]:
        """The probabilities of a text."""
        response = await self.http.post("/v1/classify", json={"model": self.model, "texts": [text]})
        response.raise_for_status()
        probabilities: dict[str, float] = response.json()["answers"][0]["probabilities"]
        return probabilities

    async def write(self, text: str) -> str:
        """What is written behind a text."""
        answer = await self.api.completions.create(model=self.model, prompt=text, max_tokens=NEW_TOKENS)
        return answer.choices[0].text


def close(first: dict[str, float], second: dict[str, float]) -> bool:
    """Whether two answers are one, up to rounding."""
    return all(abs(first[name] - second[name]) < TOLERANCE for name in first)


async def nuisances(url: str, done: asyncio.Event, *, largest: int) -> Counter[str]:
    """Clients that leave in the middle of a request, and bodies that are malformed or too large, until `done`.

    Returns:
        How many of each, with the statuses that came back.
    """
    counts: Counter[str] = Counter()
    host, port = url.removeprefix("http://").split(":")

    async def leave() -> None:
        while not done.is_set():
            kind = random.choice(("/v1/classify", "/v1/completions"))
            body: dict[str, Any] = {"prompt": "never read", "max_tokens": 64, "stream": random.random() < 0.5}
            raw = json.dumps({"texts": ["never read"] * 8} if kind == "/v1/classify" else body).encode()
            _, writer = await asyncio.open_connection(host, int(port))
            head = f"POST {kind} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
            cut = random.choice((len(raw), len(raw) // 2))  # some leave before they have sent it all
            writer.write(f"{head}Content-Length: {len(raw)}\r\n\r\n".encode() + raw[:cut])
            await writer.drain()
            await asyncio.sleep(random.uniform(0, 0.2))
            writer.transport.abort()
            counts["left"] += 1

    async def spoil() -> None:
        kind = {"content-type": "application/json"}
        async with httpx.AsyncClient(base_url=url, timeout=60, verify=False) as client:
            while not done.is_set():
                large = b'{"texts": ["' + b"x" * largest + b'"]}'
                content = random.choice((b"{", b"\xff", b'{"texts": 3}', large))
                try:
                    response = await client.post("/v1/classify", content=content, headers=kind)
                    counts[f"{'too large' if content is large else 'malformed'}: {response.status_code}"] += 1
                except httpx.HTTPError as error:
                    counts[type(error).__name__] += 1
                await asyncio.sleep(0.1)

    await asyncio.gather(*(leave() for _ in range(4)), *(spoil() for _ in range(4)))
    return counts


async def measure(
    url: str,
    rows: Sequence[str],
    what: str,
    *,
    model: str,
    clients: int,
    nuisance: bool = False,
    known: dict[str, Any] | None = None,
) -> tuple[Outcome, Counter[str]]:
    """A load of one kind, compared with the answers given alone.

    Args:
        url: of the server.
        rows: what is asked.
        what: "classify" or "write".
        model: which is asked.
        clients: how many ask at a time.
        nuisance: whether others misbehave meanwhile.
        known: answers given alone, and where those that are missing are put.
    """
    asker = Asker.of(url, model)
    ask: Callable[[str], Awaitable[Any]] = asker.classify if what == "classify" else asker.write
    alone = known if known is not None else {}
    for row in dict.fromkeys(rows):
        if row not in alone:
            alone[row] = await ask(row)
    same = (lambda row, answer: close(alone[row], answer)) if what == "classify" else (lambda row, a: alone[row] == a)
    done = asyncio.Event()
    trouble = asyncio.ensure_future(nuisances(url, done, largest=1 << 21)) if nuisance else None
    outcome = await load(ask, rows, same, clients=clients)
    done.set()
    counts = await trouble if trouble is not None else Counter()
    await asyncio.gather(asker.http.aclose(), asker.api.close())
    return outcome, counts


def plain_server(run: Path, port_file: Path) -> None:
    """The same model and adapter by plain transformers, one request at a time."""
    import uvicorn
    from fastapi import FastAPI
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from varlora.predictor.predictor import Predictor
    from varlora.tasks.prompts import label_prompt

    predictor = Predictor.from_pretrained(run, samples=0)
    config = predictor.loaded.config
    model: Any = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(config.model_name_or_path, dtype=torch.float32), str(run)
    ).eval()
    tokenizer = AutoTokenizer.from_pretrained(config.model_name_or_path)
    readout: Any = predictor.loaded.readout
    app, turn = FastAPI(), threading.Lock()

    @app.post("/v1/classify")
    def classify(body: dict[str, Any]) -> dict[str, Any]:
        with turn, torch.inference_mode():
            ids = tokenizer(label_prompt(body["texts"][0], predictor.classes), return_tensors="pt")
            logits = model(**ids, logits_to_keep=1).logits[0, -1, list(readout.token_ids)]
            found = logits.double().softmax(-1).tolist()
        return {"answers": [{"probabilities": dict(zip(predictor.classes, found, strict=True))}]}

    @app.post("/v1/completions")
    def completions(body: dict[str, Any]) -> dict[str, Any]:
        with turn, torch.inference_mode():
            ids = tokenizer(body["prompt"], return_tensors="pt")
            whole = model.generate(**ids, max_new_tokens=body["max_tokens"], do_sample=False, pad_token_id=0)
            text = tokenizer.decode(whole[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
        choice = {"index": 0, "text": text, "finish_reason": "length", "logprobs": None}
        return {"id": "x", "object": "text_completion", "created": 0, "model": "plain", "choices": [choice]}

    config_ = uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error")
    server = uvicorn.Server(config_)

    def tell() -> None:
        while not server.started:
            time.sleep(0.05)
        port_file.write_text(f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}")

    threading.Thread(target=tell, daemon=True).start()
    server.run()


def train(model: str, folder: Path) -> Path:
    """A run of one step, which is enough to be served."""
    rows = [{"text": text, "label": ("negative", "positive")[n % 2]} for n, text in enumerate(texts(8))]
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    command = (
        f"train --model_name_or_path {model} --train_file {file} --validation_file {file} --test_file {file} "
        f"--max_steps 1 --dtype float32 --samples 4 --output_dir {folder / 'run'}"
    )
    subprocess.run([sys.executable, "-m", "varlora", *command.split()], check=True)
    return folder / "run"


def main() -> None:
    """Trains, serves, asks, and prints the table."""
    parser = parser_of(__doc__, rounds=1)
    parser.set_defaults(threads=os.cpu_count())
    parser.add_argument("model", help="folder of a causal language model")
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--texts", type=int, default=32, help="requests for texts")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--servers", default="varlora,plain", help="which are measured")
    parser.add_argument("--plain", help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.plain:
        plain_server(Path(given.model), Path(given.plain))
        return
    rows, table = texts(given.requests), list[dict[str, Any]]()
    answers: dict[tuple[str, str], dict[str, Any]] = {}

    def add(label: str, url: str, what: str, **options: Any) -> None:
        asked = rows if what == "classify" else rows[: given.texts]
        options["known"] = answers.setdefault((url, what), {})
        total, others = Outcome(), Counter[str]()
        for _ in range(given.rounds):
            outcome, counts = asyncio.run(measure(url, asked, what, model="run", clients=given.clients, **options))
            total.add(outcome)
            others += counts
        table.append(total.row(label, others))
        print(label, file=sys.stderr, flush=True)

    environment = {**os.environ, "COLUMNS": "200", "OMP_NUM_THREADS": str(given.threads)}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run = train(given.model, folder)
        for samples in (0, 4) if "varlora" in given.servers else ():
            words = ["-m", "varlora", "serve", f"run={run}", "--port", "0", "--timeout", "600"]
            command = [sys.executable, *words, "--samples", str(samples)]
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
                assert process.stdout is not None
                found = re.search(r"http://127\.0\.0\.1:\d+", process.stdout.readline())
                assert found is not None
                how = "one pass" if samples == 0 else f"{samples} draws"
                add(f"varlora serve, classes, {how}", found[0], "classify")
                if samples == 0:
                    add(f"varlora serve, {NEW_TOKENS} tokens", found[0], "write")
                    add("the same, classes, beside nuisances", found[0], "classify", nuisance=True)
                    add("the same, texts, beside nuisances", found[0], "write", nuisance=True)
                process.terminate()
                assert process.wait(60) == 0
        if "plain" in given.servers:
            port_file = folder / "port"
            words = ["-m", "benchmarks.serve", str(run), "--plain", str(port_file), "--threads", str(given.threads)]
            with subprocess.Popen([sys.executable, *words]) as peer:
                while not port_file.exists() or not (url := port_file.read_text()):
                    time.sleep(0.1)
                add(f"plain transformers, {NEW_TOKENS} tokens", url, "write")
                add("plain transformers, classes", url, "classify")
                peer.terminate()
    show({"Load": table}, given, clients=given.clients)


if __name__ == "__main__":
    main()
