"""Tasks on all cores and on a real Dask scheduler with a worker, each in a process of its own, give the same results."""

import json
import subprocess
import sys
from operator import pow as power
from pathlib import Path

import pytest

from simulations.grid import run_tasks
from simulations.pools import field_of, gap_tasks, play_task

distributed = pytest.importorskip("distributed")  # in the extras grid and dev
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def scheduler(tmp_path_factory):
    """The address of a scheduler with one worker, as an operator would start them."""
    folder = tmp_path_factory.mktemp("dask")
    told = folder / "scheduler.json"
    local = ["--host", "127.0.0.1", "--no-dashboard"]
    options = {"cwd": ROOT, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    start = [sys.executable, "-m", "distributed.cli.dask_scheduler", *local, "--port", "0"]
    with subprocess.Popen([*start, "--scheduler-file", str(told)], **options) as scheduler:
        try:
            for line in scheduler.stderr:
                if "Scheduler at:" in line:
                    address = line.split()[-1]
                    break
            join = [sys.executable, "-m", "distributed.cli.dask_worker", address, *local]
            join += ["--nthreads", "1", "--local-directory", str(folder)]
            with subprocess.Popen(join, **options) as worker:
                try:
                    yield address
                finally:
                    worker.terminate()
                    worker.communicate()
        finally:
            scheduler.terminate()
            scheduler.communicate()


def test_every_task_is_told_once_with_its_result():
    assert dict(run_tasks(power, [1, 2, 3], 2)) == {1: 2, 2: 4, 3: 8}
    assert dict(run_tasks(power, [], 2)) == {}


def test_a_failing_task_fails_the_run():
    with pytest.raises(TypeError):
        dict(run_tasks(power, [1, "no number"], 2))


def test_a_cluster_plays_exactly_what_this_machine_plays(scheduler, outcomes):
    where = field_of([outcomes(60)], limit=60)
    tasks = gap_tasks(where, ["router", "linucb"], prior="none", seeds=1)
    here, there = (dict(run_tasks(play_task, tasks, where, cluster=at)) for at in (None, scheduler))
    assert set(here) == set(there) == set(tasks)
    assert all(here[task].tolist() == there[task].tolist() for task in tasks)


def test_a_failing_task_on_a_cluster_fails_the_run(scheduler):
    with pytest.raises(TypeError):
        dict(run_tasks(power, [1, "no number"], 2, cluster=scheduler))


def test_an_address_where_nobody_answers_is_named():
    with pytest.raises(ValueError, match=r"no scheduler answers at tcp://127\.0\.0\.1:9"):
        dict(run_tasks(power, [1], 2, cluster="tcp://127.0.0.1:9"))


def test_the_command_takes_the_cluster(scheduler, tmp_path, capsys):
    from simulations.__main__ import main

    options = ["--limit", "90", "--seeds", "1", "--policy", "router", "ucb1", "--report", str(tmp_path)]
    assert main(["run", "withdrawal", *options, "--dask", scheduler]) == 0
    assert "withdrawn: 30 requests" in capsys.readouterr().out
    assert json.loads((tmp_path / "scenarios.json").read_text())[0]["scenario"] == "withdrawal"
