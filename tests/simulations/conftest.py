"""Made-up recorded outcomes for the simulations' tests: nothing is downloaded, and every figure has a known cause."""

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from bandit.arms import Arm
from simulations.datasets import Dataset, RecordedPrompt

ARMS = (Arm("small", 0.1, 0.4), Arm("middle", 1.0, 2.0), Arm("large", 5.0, 15.0))
MEANS = np.array([0.6, 0.75, 0.85])


def made_up(n: int = 300, *, seed: int = 0, hard_share: float = 0.5, name: str = "made-up") -> Dataset:
    """Short sums, which all models do alike, and long texts with code, at which the small one fails."""
    rng = np.random.default_rng(seed)
    hard = rng.random(n) < hard_share
    texts = [
        f"{name} {seed} {i}: " + ("def f(x):\n  return x\n" * 20 if hard[i] else "What is 12 times 12?")
        for i in range(n)
    ]
    families = ["code" if h else "sums" for h in hard]
    prompts = tuple(
        RecordedPrompt(f"p{i}", text, family, tools=False)
        for i, (text, family) in enumerate(zip(texts, families, strict=True))
    )
    level = np.where(hard[:, None], MEANS - [0.4, 0.1, 0.0], [0.85, 0.85, 0.85])
    quality = np.clip(level + rng.normal(0, 0.08, (n, 3)), 0, 1)
    tokens_in, tokens_out = np.full((n, 3), 60), rng.integers(100, 500, (n, 3))
    cost = np.array([[a.cost_usd(60, t) for a, t in zip(ARMS, row, strict=True)] for row in tokens_out])
    return Dataset(name, prompts, ARMS, quality, cost, tokens_in, tokens_out, {})


@pytest.fixture(scope="session")
def outcomes() -> Callable[..., Dataset]:
    """outcomes(n, seed=..., hard_share=..., name=...) -> Dataset."""
    return made_up


def vector_of(text: str, length: int = 24) -> np.ndarray:
    return np.random.default_rng(list(text.encode())).normal(size=length).astype(np.float32)


@pytest.fixture
def endpoint():
    """An embedder over HTTP: base_url; vector_of a text; asked: path, body and headers of each request; reply: to answer otherwise."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            server.asked.append((self.path, body, dict(self.headers)))
            rows = [
                {"index": i, "embedding": vector_of(text).tolist()} for i, text in enumerate(body["input"])
            ]
            status, content = server.reply(rows)
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.base_url = f"http://127.0.0.1:{server.server_port}/v1"
    server.vector_of = vector_of
    server.asked, server.reply = [], lambda rows: (200, {"data": rows[::-1]})
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()
