"""The README is run: its YAML is a configuration, its Python talks to a gateway, its commands do what they say."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from service.config import parse_settings
from simulations import fleet
from simulations.__main__ import main

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def commands() -> list[str]:
    text = "\n".join(blocks("console")).replace("\\\n", " ")
    return [
        line.removeprefix("$ ").split("#")[0].strip() for line in text.splitlines() if line.startswith("$ ")
    ]


@pytest.fixture(scope="module")
def gateway(tmp_path_factory):
    with fleet.running(fleet.Plan(tmp_path_factory.mktemp("fleet"), time_scale=1000)) as up:
        yield up.url


def test_every_command_of_the_readme_is_one_that_is_tested_here():
    starts = {shlex.split(command)[0] for command in commands()}
    assert starts == {"make", ".venv/bin/python", "curl"}
    assert len(commands()) == 6


def test_make_targets_of_the_readme_exist():
    targets = {command.split()[1] for command in commands() if command.startswith("make")}
    targets |= set(re.findall(r"`make (\w+)`", README))
    for target in targets:
        done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_yaml_of_the_readme_is_a_configuration(tmp_path):
    (text,) = blocks("yaml")
    settings = parse_settings(text, source="README.md", folder=tmp_path, environ={"EXAMPLE_API_KEY": "k"})
    assert list(settings.routes["auto"].models) == ["small", "large"]


def test_python_of_the_readme_talks_to_the_gateway(gateway, capsys):
    (code,) = blocks("python")
    exec(code.replace("http://127.0.0.1:8080", gateway), {})
    model, decision, *_ = capsys.readouterr().out.split()
    assert model in ("llama-3.1-8b-instruct", "mistral-large-2512", "gemini-2.5-pro")
    assert decision.startswith("chatcmpl-rt-")


def test_curl_of_the_readme_rates_an_answer(gateway):
    message = {"role": "user", "content": "What is 12 times 12?"}
    asked = httpx.post(f"{gateway}/v1/chat/completions", json={"model": "auto", "messages": [message]}).json()
    (command,) = [command for command in commands() if command.startswith("curl")]
    _, url, _, header, _, body = shlex.split(command)
    name, value = header.split(": ")
    url = url.replace("localhost:8080", gateway)
    answer = httpx.post(url, headers={name: value}, content=body.replace("chatcmpl-rt-...", asked["id"]))
    told = next(line for block in blocks("console") for line in block.splitlines() if line.startswith("{"))
    assert answer.text.replace(asked["id"].removeprefix("chatcmpl-"), "rt-...") == told


def test_replay_commands_of_the_readme_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    replays = [command for command in commands() if " replay " in command]
    assert len(replays) == 2
    for command in replays:
        arguments = shlex.split(command)[3:]
        arguments = ["wheel" if argument == "DIR" else argument for argument in arguments]
        assert main([*arguments, "--limit", "60", "--orders", "1"]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"result.json", "decisions.csv"}


def test_service_command_of_the_readme_names_what_is_wrong_without_its_file(tmp_path):
    (command,) = [command for command in commands() if "-m service" in command]
    arguments = [sys.executable, *shlex.split(command)[1:]]
    done = subprocess.run(
        arguments, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "gateway.yaml" in done.stderr


def test_reading_path_of_the_readme_exists_and_is_about_an_hour():
    files = re.findall(
        r"`((?:bandit|feedback|service)/[a-z_]+\.py|[a-z_]+\.py)`",
        README.split("## Reading the code")[1].split("```")[0],
    )
    paths = [ROOT / (file if "/" in file else f"bandit/{file}") for file in files]
    assert sum(len(path.read_text().splitlines()) for path in paths) < 1300
