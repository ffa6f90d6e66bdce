"""A server of the OpenAI kind on loopback: PEFT adapters of one base model, each under its folder's name."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer


@dataclass
class Behaviour:
    """What a server does otherwise than a recent vLLM.

    Attributes:
        knows_ids: whether it tells the log-probabilities of given tokens.
        refuses_ids: whether it refuses the fields for that, and does not only ignore them.
        failures: how many requests at first get a 503.
        key: what must be borne.
        drops: whether the last choice is left out of an answer.
        most: of the likeliest tokens that it tells.
        asked: bodies of the requests.
        statuses: how often each was answered.
        at_once: most requests at once.
    """

    knows_ids: bool = True
    refuses_ids: bool = False
    failures: int = 0
    key: str | None = None
    drops: bool = False
    most: int = 1000
    asked: list[dict[str, Any]] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    at_once: int = 0


class _Model:
    def __init__(self, base: str, adapters: Path, names: list[str]) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(base)
        model = AutoModelForCausalLM.from_pretrained(base)
        peft = PeftModel.from_pretrained(model, str(adapters / names[0]), adapter_name=names[0].replace(".", "_"))
        for name in names[1:]:
            peft.load_adapter(str(adapters / name), adapter_name=name.replace(".", "_"))
        self.model, self.names, self.lock = peft.eval(), names, threading.Lock()

    def log_probs(self, name: str, ids: list[int]) -> torch.Tensor:
        with self.lock, torch.no_grad():
            self.model.set_adapter(name.replace(".", "_"))
            return self.model(torch.tensor([ids])).logits[0].double().log_softmax(-1)

    def completion(self, index: int, ids: list[int], body: dict[str, Any], behaviour: Behaviour) -> dict[str, Any]:
        as_ids = bool(body.get("return_tokens_as_token_ids")) and behaviour.knows_ids

        def name(token: int) -> str:
            return f"token_id:{token}" if as_ids else self.tokenizer.decode([token])

        table = self.log_probs(body["model"], ids)
        if body.get("echo"):
            told = [None, *(float(table[i, token]) for i, token in enumerate(ids[1:]))]
            logprobs = {"tokens": [name(token) for token in ids], "token_logprobs": told, "top_logprobs": None}
            return {"index": index, "text": self.tokenizer.decode(ids), "logprobs": logprobs, "finish_reason": "length"}
        texts, values, tops = [], [], []
        for _ in range(body["max_tokens"]):
            token = int(table[-1].argmax())
            wanted = list(body.get("logprob_token_ids") or []) if behaviour.knows_ids else []
            shown = [token, *(wanted or table[-1].topk(min(body["logprobs"], table.shape[1])).indices.tolist())]
            texts, values = [*texts, token], [*values, float(table[-1, token])]
            tops.append({name(one): float(table[-1, one]) for one in reversed(shown)})
            if token == self.tokenizer.eos_token_id:
                break
            ids = [*ids, token]
            table = self.log_probs(body["model"], ids)
        ended = texts[-1] == self.tokenizer.eos_token_id
        return {
            "index": index,
            "text": self.tokenizer.decode(texts, skip_special_tokens=True),
            "logprobs": {"tokens": list(map(name, texts)), "token_logprobs": values, "top_logprobs": tops},
            "finish_reason": "stop" if ended else "length",
        }


@contextmanager
def serving(base: str, adapters: Path, names: list[str], behaviour: Behaviour) -> Iterator[str]:
    """Within the block a server answers at the URL that the block gets."""
    model, running, lock = _Model(base, adapters, names), 0, threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self, status: int, content: dict[str, Any]) -> None:
            data = json.dumps(content).encode()
            behaviour.statuses[status] += 1
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def refused(self) -> bool:
            if behaviour.key and self.headers.get("Authorization") != f"Bearer {behaviour.key}":
                self.answer(401, {"error": {"message": "who are you"}})
                return True
            with lock:
                failing, behaviour.failures = behaviour.failures > 0, max(0, behaviour.failures - 1)
            if failing:
                self.answer(503, {"error": {"message": "busy"}})
            return failing

        def do_GET(self) -> None:
            if not self.refused():
                self.answer(200, {"data": [{"id": name, "max_model_len": 64} for name in model.names]})

        def do_POST(self) -> None:
            nonlocal running
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                running += 1
                behaviour.at_once = max(behaviour.at_once, running)
                behaviour.asked.append(body)
            try:
                if self.refused():
                    return
                if behaviour.refuses_ids and "logprob_token_ids" in body:
                    self.answer(400, {"error": {"message": "unknown field logprob_token_ids"}})
                    return
                if (body.get("logprobs") or 0) > behaviour.most:
                    self.answer(400, {"error": {"message": f"at most {behaviour.most} logprobs"}})
                    return
                choices = [model.completion(n, ids, body, behaviour) for n, ids in enumerate(body["prompt"])]
                choices.reverse()  # no order is promised
                self.answer(200, {"choices": choices[1:] if behaviour.drops else choices})
            finally:
                with lock:
                    running -= 1

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
