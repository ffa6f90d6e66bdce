"""Who may ask, how much, and what becomes of those who leave: with a model that answers when it is told to."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from serving import served
from varlora.serve.app import build_app
from varlora.serve.create import check_installed
from varlora.serve.metrics import ServerMetrics
from varlora.serve.row_batcher import Row, RowBatcher, RowJob
from varlora.serve.served import Served
from varlora.serve.settings import ServeSettings
from varlora.serve.text_batcher import TextBatcher
from varlora.serve.worker import QueueCapacity, Worker


class Slow:
    """Answers when `go` is set, with the length of the text; refuses texts that are "bad"."""

    def __init__(self) -> None:
        self.name, self.columns = "slow", frozenset({"text"})
        self.go, self.begun = threading.Event(), threading.Event()
        self.go.set()
        self.batches: list[list[Row]] = []

    def facts(self) -> dict[str, Any]:
        return {"kind": "label", "classes": ["a"], "num_draws": 1}

    def answer(self, rows: Sequence[Row], *, draws: bool) -> list[dict[str, Any]]:
        self.begun.set()
        assert self.go.wait(20)
        if any(row == "bad" for row in rows):
            raise ValueError("a bad row")
        if any(row == "broken" for row in rows):
            raise RuntimeError("out of memory")
        self.batches.append(list(rows))
        return [{"id": "", "label": str(len(row)), "answered": len(row) % 2 == 0} for row in rows]


class Running:
    """A server of `Slow`."""

    def __init__(self, url: str, app: Any, model: Slow, room: QueueCapacity) -> None:
        self.url, self.app, self.model, self.room = url, app, model, room
        self.client = httpx.Client(base_url=url, timeout=30, verify=False)
        self.get, self.post = self.client.get, self.client.post

    def ask(self, *texts: str, **options: Any) -> httpx.Response:
        return self.post("/v1/classify", json={"texts": texts}, **options)

    def ask_and_hold(self, pool: ThreadPoolExecutor, text: str = "x") -> Future[httpx.Response]:
        """Asks; the model has begun to answer, and goes on when `model.go` is set."""
        self.model.go.clear()
        self.model.begun.clear()
        asked = pool.submit(self.ask, text)
        assert self.model.begun.wait(20)
        return asked


@contextmanager
def running(**settings: Any) -> Iterator[Running]:
    given = ServeSettings(**settings)
    room, model = QueueCapacity(given.max_waiting), Slow()
    metrics = ServerMetrics(lambda: room.waiting)
    rows, texts = RowBatcher(given.batch_rows, metrics), TextBatcher(given.batch_rows, given.batch_tokens, metrics)
    one = Served(
        name="slow",
        worker=Worker("slow", [rows, texts]),
        row_batcher=rows,
        text_batcher=texts,
        classifier=model,
        language=None,
        facts={},
    )
    app = build_app([one], room, metrics, given)
    with served(app) as url:
        made = Running(url, app, model, room)
        try:
            yield made
        finally:
            model.go.set()
            made.client.close()


def until(what: Any, seconds: float = 10) -> None:
    """Waits until something is so."""
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it never became so"
        time.sleep(0.01)


def test_rows_of_all_requests_share_batches_in_turn() -> None:
    with running(batch_rows=4) as server, ThreadPoolExecutor(8) as pool:
        first = server.ask_and_hold(pool)
        large = pool.submit(server.ask, *["large"] * 9)
        until(lambda: server.room.waiting == 10)
        small = [pool.submit(server.ask, "s" * (n + 6)) for n in range(3)]
        until(lambda: server.room.waiting == 13)
        server.model.go.set()
        assert [one.result().json()["answers"][0]["label"] for one in small] == ["6", "7", "8"]
        assert [answer["label"] for answer in large.result().json()["answers"]] == ["5"] * 9
        assert first.result().status_code == 200
        sizes = [len(batch) for batch in server.model.batches]
        assert sizes == [1, 4, 4, 4]
        assert sorted(map(len, server.model.batches[1])) == [5, 6, 7, 8], "a large request kept others waiting"


def test_a_bad_row_is_its_own_requests_alone() -> None:
    with running() as server, ThreadPoolExecutor(8) as pool:
        waiting = [server.ask_and_hold(pool)]
        waiting += [pool.submit(server.ask, text) for text in ("one", "bad", "three")]
        until(lambda: server.room.waiting == 4)
        server.model.go.set()
        assert [one.result().status_code for one in waiting] == [200, 200, 400, 200]
        assert waiting[2].result().json()["error"]["message"] == "a bad row"


def test_a_model_that_fails_takes_no_request_after_it_along() -> None:
    with running() as server:
        answer = server.ask("broken")
        assert answer.status_code == 500
        assert "out of memory" not in answer.text
        assert server.ask("fine").status_code == 200


def test_a_batch_that_fails_fails_only_whose_rows_do() -> None:
    with running() as server, ThreadPoolExecutor(8) as pool:
        waiting = [server.ask_and_hold(pool)]
        waiting += [pool.submit(server.ask, text) for text in ("one", "broken", "three")]
        until(lambda: server.room.waiting == 4)
        server.model.go.set()
        assert [one.result().status_code for one in waiting] == [200, 200, 500, 200]


def test_a_step_that_fails_ends_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    with running() as server:
        with monkeypatch.context() as broken:
            broken.setattr(RowBatcher, "_next_batch", lambda self: 1 / 0)
            assert server.ask("a").status_code == 500
        assert server.get("/healthz").status_code == 200
        assert server.ask("a").status_code == 200
        assert server.room.waiting == 0


def test_a_job_that_cannot_be_begun_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = RowBatcher.open

    def refuse(self: RowBatcher, job: RowJob) -> None:
        assert list(job.rows) != ["a"]
        opened(self, job)

    monkeypatch.setattr(RowBatcher, "open", refuse)
    with running() as server, ThreadPoolExecutor(8) as pool:
        waiting = [server.ask_and_hold(pool)]
        for text in ("a", "b"):
            waiting.append(pool.submit(server.ask, text))
            until(lambda: server.room.waiting == len(waiting))
        server.model.go.set()
        assert [one.result().status_code for one in waiting] == [200, 500, 200]
        assert server.room.waiting == 0


def test_who_watches_a_busy_server_is_answered() -> None:
    with running(max_waiting=4, max_rows=4) as server:
        server.app.state.traffic.active = 100
        assert server.ask("a").json()["error"]["code"] == "busy"
        assert server.get("/healthz").status_code == 200
        assert server.get("/metrics").status_code == 200
        server.app.state.traffic.active = 0


@pytest.mark.parametrize(
    "body", [b"[" * 100_000, b'{"texts": ["\xff"]}', b"[]", b'{"\\ud800": 1}', b'{"n": ' + b"9" * 5000]
)
def test_a_body_that_is_no_request_is_told(body: bytes) -> None:
    with running() as server:
        answer = server.post("/v1/classify", content=body, headers={"content-type": "application/json"})
        assert answer.status_code == 400
        assert answer.json()["error"]["message"].startswith("the body")


def test_a_full_queue_says_when_to_ask_again() -> None:
    with running(max_waiting=4, max_rows=4) as server, ThreadPoolExecutor(4) as pool:
        server.model.go.clear()
        accepted = [pool.submit(server.ask, "a", "b"), pool.submit(server.ask, "c", "d")]
        until(lambda: server.room.waiting == 4)
        refused = server.ask("e")
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) >= 1
        assert refused.json()["error"]["code"] == "queue_full"
        server.model.go.set()
        assert [one.result().status_code for one in accepted] == [200, 200]
        assert server.ask("e").status_code == 200


def test_time_is_limited_before_and_after_the_start() -> None:
    with running(timeout=0.4) as server, ThreadPoolExecutor(4) as pool:
        begun = server.ask_and_hold(pool, "a")
        queued = server.ask("b")
        assert begun.result().status_code == 504
        assert queued.status_code == 503
        assert "retry-after" in queued.headers
        server.model.go.set()
        until(lambda: server.room.waiting == 0)
        assert server.ask("c").status_code == 200
        assert server.model.batches[-1] == ["c"], "a row that nobody waits for was computed"


def test_a_client_that_leaves_frees_its_place() -> None:
    with running(max_waiting=2, max_rows=2) as server, ThreadPoolExecutor(4) as pool:
        first = server.ask_and_hold(pool)
        body = json.dumps({"texts": ["gone"]}).encode()
        lines = ("POST /v1/classify HTTP/1.1", "Host: localhost", "Content-Type: application/json")
        head = "\r\n".join((*lines, f"Content-Length: {len(body)}"))
        with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2]))) as leaving:
            leaving.sendall(head.encode() + b"\r\n\r\n" + body)
            until(lambda: server.room.waiting == 2)
        until(lambda: server.room.waiting == 1)
        after = pool.submit(server.ask, "after")
        until(lambda: server.room.waiting == 2)
        server.model.go.set()
        assert [first.result().status_code, after.result().status_code] == [200, 200]
        assert ["gone"] not in server.model.batches


def test_a_body_is_refused_as_soon_as_it_is_too_large() -> None:
    with running(max_body_bytes=2048) as server:
        sent = 0

        def endless() -> Iterator[bytes]:
            nonlocal sent
            for _ in range(1000):
                sent += 1024
                yield b"x" * 1024

        kind = {"content-type": "application/json"}
        declared = server.post("/v1/classify", content=b" " * 4096, headers=kind)
        chunked = server.post("/v1/classify", content=endless(), headers=kind)
        for response in (declared, chunked):
            assert response.status_code == 413
            assert response.json()["error"]["code"] == "body_too_large"
        assert server.ask("fine").status_code == 200


def test_a_token_is_asked_of_everything_but_the_page() -> None:
    with running(api_key="secret") as server:
        assert server.ask("a").status_code == 401
        assert server.ask("a", headers={"authorization": "Bearer wrong"}).status_code == 401
        assert server.ask("a", headers={"authorization": "secret"}).status_code == 401
        assert server.ask("a", headers={"authorization": "Bearer secret"}).status_code == 200
        for path in ("/v1/models", "/metrics", "/openapi.json"):
            assert server.get(path).status_code == 401
            assert server.get(path, headers={"authorization": "bearer secret"}).status_code == 200
        assert server.get("/").status_code == 200
        assert server.get("/healthz").json() == {"status": "ok"}
        assert server.ask("a", headers={"authorization": "Bearer secret", "host": "elsewhere"}).status_code == 200
        assert "secret" not in repr(ServeSettings(api_key="secret"))


def test_another_sites_page_cannot_ask() -> None:
    with running() as server:
        form = httpx.post(
            f"{server.url}/v1/classify", content=b'{"texts": ["a"]}', headers={"content-type": "text/plain"}
        )
        assert form.status_code == 415
        rebound = server.ask("a", headers={"host": "evil.example"})
        assert rebound.status_code == 403
        assert "access-control-allow-origin" not in rebound.headers
        policy = server.get("/").headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy


def test_what_is_accepted_is_finished_and_the_rest_refused_while_it_stops() -> None:
    with running() as server, ThreadPoolExecutor(2) as pool:
        accepted = server.ask_and_hold(pool, "a")
        server.app.state.traffic.stopping = True
        refused = server.ask("b")
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "stopping"
        assert server.get("/healthz").status_code == 503
        server.model.go.set()
        assert accepted.result().status_code == 200


def test_metrics_count_what_has_happened() -> None:
    with running() as server:
        server.ask("even")
        server.ask("odd", "even", "uneven")
        server.ask("bad")
        server.get(f"/no-such-path-{'x' * 50}")
        lines = server.get("/metrics").text.splitlines()
        found = {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}
    assert found['varlora_requests_total{endpoint="/v1/classify",status="200"}'] == 2
    assert found['varlora_requests_total{endpoint="/v1/classify",status="400"}'] == 1
    assert found['varlora_requests_total{endpoint="other",status="404"}'] == 1
    assert found['varlora_request_seconds_count{endpoint="/v1/classify"}'] == 3
    assert found['varlora_rows_total{model="slow",outcome="answered"}'] == 3
    assert found['varlora_abstained_share{model="slow"}'] == 0.25
    assert found["varlora_queue_length"] == 0
    assert found['varlora_batch_rows_sum{kind="rows"}'] == 4


def test_no_text_of_a_request_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("DEBUG"), running(log_requests=True) as server:
        server.ask("a private matter")
        server.get("/a-private-path")
        server.ask("bad")
    assert "POST /v1/classify 200" in caplog.text
    for logger in ("varlora", "uvicorn"):
        assert not [r for r in caplog.records if r.name.startswith(logger) and "private" in r.getMessage()]


def test_settings_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match="max_waiting is 4 and max_rows 256"):
        ServeSettings(max_waiting=4)
    with pytest.raises(ValueError, match="api_key"):
        ServeSettings(api_key=" spaces ")


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"fastapi, uvicorn, prometheus_client: pip install 'varlora\[serve\]'"):
        check_installed()
