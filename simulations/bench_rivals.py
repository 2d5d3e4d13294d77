"""Other gateways on the package index, each in a virtual environment of its own under `.cache`, made once.

One that cannot be installed or does not start is reported by the bench, which goes on without it. Their settings are the
quickest that we know of: no database, no callbacks, no telemetry, logs of errors only. The two that are written in Rust run
through the HTTP servers that their own wheels embed, held to one core like all others.
"""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from simulations.bench_upstream import MODEL
from simulations.fleet import FleetError, process

CACHE: Final = Path(".cache") / "rivals"
INSTALL_S: Final = 600.0


class RivalError(RuntimeError):
    """A rival could not be installed or did not start; the message ends with its last words."""


@dataclass(frozen=True, slots=True)
class Rival:
    """requirement: what is installed. path: of its chat endpoint. model: what it calls ours. files: what its program
    reads, by name, with {upstream} for the upstream's base URL. program: run by its own Python in a folder with these
    files; says where it listens.
    """

    name: str
    requirement: str
    path: str
    model: str
    files: tuple[tuple[str, str], ...]
    program: str


# Each program tells its address once it answers, and ends by itself if it never does.
_TELL: Final = """
import os, socket, sys, threading, time
def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]
def tell(port, wait_s=90):
    def look():
        for _ in range(10 * wait_s):
            time.sleep(0.1)
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
            except OSError:
                continue
            print(f"rival on http://127.0.0.1:{port}", flush=True)
            return
        os._exit(1)
    threading.Thread(target=look, daemon=True).start()
"""

LITELLM: Final = Rival(
    name="LiteLLM proxy",
    requirement="litellm[proxy]==1.106.2",
    path="/v1/chat/completions",
    model=MODEL,
    files=(
        (
            "litellm.yaml",
            f"""
model_list:
  - model_name: {MODEL}
    litellm_params: {{model: openai/{MODEL}, api_base: "{{upstream}}/v1", api_key: unused}}
litellm_settings: {{callbacks: [], num_retries: 0, request_timeout: 600, drop_params: true}}
router_settings: {{num_retries: 0}}
""",
        ),
    ),
    program=_TELL
    + """
os.environ |= {
    "LITELLM_LOG": "ERROR", "LITELLM_MODE": "PRODUCTION", "LITELLM_TELEMETRY": "False",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOCAL_ANTHROPIC_BETA_HEADERS": "True",
    "LITELLM_LOCAL_BLOG_POSTS": "True", "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",
    "OPENAI_API_KEY": "unused",
}
port = free_port()
tell(port)
sys.argv = ["litellm", "--config", "litellm.yaml", "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]
said, sys.stdout = sys.stdout, sys.stderr
print = lambda *a, file=None, **k: __builtins__.print(*a, file=file or said, **k)
from litellm import run_server
run_server()
""",
)

TENSORZERO: Final = Rival(
    name="TensorZero",
    requirement="tensorzero==2026.6.0",
    path="/openai/v1/chat/completions",
    model=f"tensorzero::model_name::{MODEL}",
    files=(
        (
            "tensorzero.toml",
            f"""
[gateway]
observability.enabled = false
[models.{MODEL}]
routing = ["bench"]
[models.{MODEL}.providers.bench]
type = "openai"
model_name = "{MODEL}"
api_base = "{{upstream}}/v1"
api_key_location = "none"
""",
        ),
    ),
    program=_TELL
    + """
import tensorzero.tensorzero as t
g = t._start_http_gateway(
    config_file="tensorzero.toml", clickhouse_url=None, postgres_url=None, valkey_url=None, async_setup=False
)
print("rival on", g.base_url.replace("0.0.0.0", "127.0.0.1").removesuffix("/openai/v1").rstrip("/"), flush=True)
threading.Event().wait()
""",
)

SWITCHYARD: Final = Rival(
    name="NeMo Switchyard",
    requirement="nemo-switchyard==0.3.0",
    path="/v1/chat/completions",
    model=MODEL,
    files=(
        (
            "switchyard.toml",
            f"""
schema_version = 1
[llm_clients.bench]
format = "openai_chat"
base_url = "{{upstream}}/v1"
api_key_env = "BENCH_KEY"
[targets.a]
id = "{MODEL}"
llm_client = "bench"
[targets.b]
id = "{MODEL}-b"
llm_client = "bench"
[routes.r]
id = "{MODEL}"
type = "stage_router"
capable_target = "a"
efficient_target = "b"
picker = "efficient_first"
confidence_threshold = 0.5
""",
        ),
    ),
    program=_TELL
    + """
os.environ["BENCH_KEY"] = "unused"
from switchyard_rust.server import Server
port = free_port()
s = Server("switchyard.toml", port=port)
tell(port)
threading.Event().wait()
""",
)

RIVALS: Final = (LITELLM, TENSORZERO, SWITCHYARD)


@contextmanager
def serving(rival: Rival, folder: Path, upstream: str) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """Its process and its chat endpoint's URL; upstream: base URL without a path. Raises RivalError."""
    python = installed(rival)
    where = folder / rival.name.replace(" ", "-")
    where.mkdir()
    for name, text in rival.files:
        (where / name).write_text(text.replace("{upstream}", upstream))
    command = [str(python.absolute()), "-c", rival.program]
    try:
        with process(command, where / "log", cwd=where) as (child, url):
            yield child, url + rival.path
    except FleetError as error:
        raise RivalError(f"{rival.name} did not start: {str(error)[-300:]}") from error


def installed(rival: Rival) -> Path:
    """The Python of its environment, made now if it is not there. Raises RivalError."""
    home = CACHE / rival.requirement.replace("[", "-").replace("]", "")
    python, done = home / "bin" / "python", home / "installed"
    if done.exists():
        return python
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", rival.requirement]
    try:
        for command in ([sys.executable, "-m", "venv", "--clear", str(home)], pip):
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=INSTALL_S)  # noqa: S603
    except (subprocess.SubprocessError, OSError) as error:
        said = str(getattr(error, "stderr", None) or error).strip().splitlines()
        raise RivalError(
            f"{rival.requirement} could not be installed: {' '.join(said[-2:])[:300]}"
        ) from error
    done.touch()
    return python
