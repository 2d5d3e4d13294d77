"""`python -m service savings`: from requests and feedback at a real gateway, and from files as they are found, to the table."""

import json

import numpy as np
import pytest

from service.__main__ import main
from service.savings_log import DecisionLogs, LogError

CONFIG = """
models:
  one: {base_url: "URL", price_usd_per_mtok_in: 1, price_usd_per_mtok_out: 2}
  two: {base_url: "URL", price_usd_per_mtok_in: 3, price_usd_per_mtok_out: 6}
routes:
  auto: {models: [one, two], strategy: uniform}
  learned: {models: [one, two], usd_per_quality: 0.05}
  plain: {models: [one, two], strategy: fixed}
decision_log: {folder: log}
"""
DAY = "2026-03-05"
AT = 1_772_712_000.0  # noon of that day, UTC


class Site:
    """A configuration and its log, written as gateways write it: one file for each name."""

    def __init__(self, folder):
        self.folder, self.config, self.log = folder, folder / "gateway.yaml", folder / "log"
        self.config.write_text(CONFIG.replace("URL", "http://127.0.0.1:9/v1"))
        self.log.mkdir()

    def write(self, worker, *lines, day=DAY, folder=None):
        with ((folder or self.log) / f"decisions-{day}-{worker}.jsonl").open("a") as file:
            file.writelines(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines)

    def run(self, *arguments):
        return main(["savings", "--config", str(self.config), *arguments])


@pytest.fixture
def site(tmp_path):
    return Site(tmp_path)


def decision(key, model="one", p=(0.5, 0.5), **fields):
    line = {
        "kind": "decision",
        "decision_id": key,
        "decided_at": AT,
        "scope": "default.auto",
        "route": "auto",
    }
    line |= {"attempt": 0, "model": model, "candidates": ["one", "two"], "probabilities": list(p)}
    return line | {"quality_mean": [0.5, 0.5], "cost_usd": [0.001, 0.003]} | fields


def call(key, cost_usd=0.002, **fields):
    line = {"kind": "call", "decision_id": key, "status": "answered", "model": "one", "latency_s": 0.5}
    return line | {"cost_usd": cost_usd} | fields


def rating(key, quality, at=AT, source="user"):
    return {"kind": "rating", "decision_id": key, "source": source, "quality": quality, "at": at}


def traffic(site, *folders):
    return DecisionLogs.read(folders or [site.log]).of("default.auto")


def test_from_requests_and_feedback_to_the_table(start_lab, scripts, tmp_path, capsys):
    lab = start_lab(CONFIG)
    lab.says(one=scripts.says(200, scripts.completion()), two=scripts.says(200, scripts.completion()))
    asked = [lab.ask().json() for _ in range(60)]
    for reply in asked[:50]:
        body = {"decision_id": reply["id"], "rating": {"one": 0.5, "two": 1.0}[reply["model"]]}
        assert lab.client.post("/feedback", json=body).status_code == 202
    lab.ask(model="one")
    lab.ask(model="plain")
    lab.tick()
    config = tmp_path / "gateway.yaml"
    config.write_text(CONFIG.replace("URL", "http://127.0.0.1:9/v1"))
    folder = str(lab.gateway.settings.decision_log.folder)
    out = tmp_path / "out.json"
    assert main(["savings", "--config", str(config), "--folder", folder, "--json", str(out)]) == 0
    said = capsys.readouterr().out
    twos = sum(reply["model"] == "two" for reply in asked)
    paid = ((60 - twos) * 29 + twos * 87) * 1e-6  # 7 tokens in, 11 out
    row = next(line for line in said.splitlines() if line.startswith("as routed"))
    assert float(row.split()[-1]) == pytest.approx(1000 * paid / 60, abs=5e-4)
    assert "default.auto: 60 decisions" in said
    assert "Left out: 1 requests for a model by its name." in said
    assert "50 decisions that were rated (83.3%" in said
    assert "default.plain" in said
    told = json.loads(out.read_text())["default.auto"]
    rows = {row["policy"]: row for row in told["policies"]}
    assert rows["always two"]["quality"]["lower"] <= 1.0 <= rows["always two"]["quality"]["upper"] + 1e-9
    against = rows["always two"]["against"]
    assert against["paid_usd"] == pytest.approx(paid)
    assert abs(against["other_usd"] - 60 * 87e-6) < 4 * against["se_usd"]
    assert told["said"].startswith("Against always two: ")
    assert told["said"] in said


def test_two_gateways_files_are_joined_wherever_the_rating_came_in(site, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    site.write("a1", decision("d1"), call("d1"), decision("d2", "two"), call("d2", 0.01))
    site.write("b2", rating("d1", 0.25), rating("d2", 1.0), folder=other)
    found = traffic(site, site.log, other)
    assert found.traffic.quality.tolist() == [0.25, 1.0]
    assert found.traffic.cost_usd.tolist() == [0.002, 0.01]
    assert found.sources == {"user": 2}
    assert np.isnan(traffic(site).traffic.quality).all()


def test_the_last_value_of_a_source_counts_in_whichever_file_it_stands(site):
    site.write(
        "b2", rating("d1", 0.75, AT + 2), rating("d2", None, AT + 2), rating("d3", 0.5, source="judge:a")
    )
    site.write("a1", *(line for key in ("d1", "d2", "d3") for line in (decision(key), call(key))))
    site.write("c3", rating("d1", 0.25, AT + 1), rating("d2", 1.0, AT + 1), rating("d3", 1.0))
    assert traffic(site).traffic.quality.tolist() == pytest.approx([0.75, np.nan, 0.75], nan_ok=True)


def test_a_call_that_was_written_twice_is_billed_once_and_a_charge_replaces_the_bill(site):
    site.write("a1", decision("d1"), call("d1"), call("d1"), call("d1", 0.003, latency_s=0.7))
    site.write("a1", decision("d2"), call("d2"), decision("d3"), decision("d4"), call("d4", None))
    site.write(
        "b2", {"kind": "charge", "decision_id": "d2", "source": "application", "cost_usd": 0.5, "at": AT}
    )
    assert traffic(site).traffic.cost_usd.tolist() == pytest.approx([0.005, 0.5, np.nan, np.nan], nan_ok=True)


def test_charges_of_one_moment_are_no_trouble_though_one_is_withdrawn(site):
    charge = {"kind": "charge", "decision_id": "d1", "cost_usd": 0.5, "at": AT}
    withdrawn = charge | {"source": "b", "cost_usd": None}
    site.write("a1", decision("d1"), call("d1"), withdrawn, charge | {"source": "a"})
    site.write("a1", *(line | {"decision_id": "d2"} for line in (decision("d2"), call("d2"), withdrawn)))
    assert traffic(site).traffic.cost_usd.tolist() == [0.5, 0.002]


@pytest.mark.parametrize("cost_usd", ["0.1", -0.5, [1], {"usd": 1}])
def test_a_call_of_somebody_else_is_none_of_ours(site, cost_usd):
    site.write("a1", decision("d1"), call("d1"), call("d1", cost_usd, latency_s=0.7), call("d1", -1e-19))
    found = DecisionLogs.read([site.log])
    assert found.torn == 1
    assert found.of("default.auto").traffic.cost_usd.tolist() == [0.002]


@pytest.mark.parametrize("status", ["failed", "full", "refused"])
def test_a_call_that_nobody_answered_costs_nothing_where_no_cost_is_known(site, status):
    site.write("a1", *(decision(f"d{n}") for n in range(1, 6)))
    site.write("a1", call("d1", None, status=status), call("d2", 0.25, status=status))
    site.write("a1", call("d3", None, status=status), call("d3", 0.002))
    site.write("a1", call("d4", None, status=status), call("d4", None), call("d5", None, status="aborted"))
    costs = traffic(site).traffic.cost_usd.tolist()
    assert costs == pytest.approx([0.0, 0.25, 0.002, np.nan, np.nan], nan_ok=True)


def test_what_is_torn_or_no_line_of_ours_is_counted_and_told(site, capsys):
    torn = json.dumps(decision("d9"))[:100]
    wrong = [
        decision("d5", p=(0.0, 1.0)),
        decision("d6", p=(1.0,)),
        {"kind": "other", "decision_id": "d"},
        [1],
    ]
    wrong += [rating("g1", 1.5), decision("d7", p=(0.9, 0.5))]
    good = [line for n in range(40) for line in (decision(f"g{n}", ("one", "two")[n % 2]), call(f"g{n}"))]
    site.write("a1", *good, *wrong, torn)
    assert site.run() == 0
    said = capsys.readouterr().out
    assert "87 lines in 1 files; 7 of them torn or none of ours, left out." in said
    assert "default.auto: 40 decisions" in said
    assert "No decision was rated" in said


def test_further_attempts_are_left_out_and_their_cost_is_told(site, capsys):
    good = [line for n in range(20) for line in (decision(f"g{n}", ("one", "two")[n % 2]), call(f"g{n}"))]
    site.write("a1", *good, decision("r1", attempt=1), call("r1", 0.25))
    assert site.run() == 0
    assert "Left out: 1 further attempts, after failures or beside, for 0.25 USD." in capsys.readouterr().out


def test_since_leaves_out_what_was_decided_before(site, capsys):
    site.write("a1", decision("d1"), call("d1"))
    site.write("a1", decision("d2", decided_at=AT + 86_400), call("d2"), day="2026-03-06")
    assert site.run("--since", "2026-03-06") == 0
    assert "default.auto: 1 decisions" in capsys.readouterr().out
    assert site.run("--since", "2026-03-07") == 2
    assert "no decision since 2026-03-07" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["--route", "autp"],
            "no route is called 'autp'; known: default.auto, default.learned, default.plain",
        ),
        (["--route", "learned"], "nothing was weighed on default.learned"),
        (["--baseline", "three"], "no such model: 'three'; known: one, two"),
        (["--folder", "nowhere"], "nowhere is no folder"),
    ],
)
def test_what_is_asked_for_in_vain_is_said_in_a_sentence(site, arguments, said, capsys):
    site.write("a1", decision("d1"), call("d1"))
    assert site.run(*arguments) == 2
    assert said in capsys.readouterr().err


def test_without_a_log_it_says_how_to_keep_one(site, capsys):
    assert site.run() == 2
    assert "no decision in 0 files" in capsys.readouterr().err
    site.config.write_text(site.config.read_text().replace("decision_log: {folder: log}\n", ""))
    assert site.run() == 2
    assert "keeps no decision_log" in capsys.readouterr().err


def test_a_model_that_seldom_could_be_chosen_is_no_baseline(site, capsys):
    good = [decision(f"g{n}", p=(1.0, 0.0)) for n in range(20)]
    site.write("a1", *good, *(call(f"g{n}") for n in range(20)), decision("x", "two"), call("x"))
    assert site.run("--baseline", "two") == 0
    assert "two could be chosen in 4.8% of the decisions only" in capsys.readouterr().out


def test_files_of_others_in_the_folder_are_left_alone(site):
    (site.log / "notes.jsonl").write_text("nothing of ours")
    with pytest.raises(LogError, match="in 0 files"):
        DecisionLogs.read([site.log])


def test_ratings_that_hang_on_the_model_are_told(site, capsys):
    keys = [(f"g{n}", ("one", "two")[n % 2]) for n in range(200)]
    site.write("a1", *(line for key, model in keys for line in (decision(key, model), call(key))))
    site.write(
        "a1", *(rating(key, 0.5) for n, (key, model) in enumerate(keys) if model == "one" or n % 8 == 1)
    )
    assert site.run() == 0
    said = capsys.readouterr().out
    assert "(62.5%: one 100.0%, two 25.0%), by user 125." in said
    assert "Some models' answers were rated oftener than others'" in said
