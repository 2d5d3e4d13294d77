"""`python -m simulations demo | fleet | replay | run | bench | schedules`: the demo, its fleet left running, replays,
scenarios, measurements, and schedules of failures.
"""

import argparse
import json
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any, Final

from simulations import (
    apgr,
    bench,
    bench_gateway,
    bench_path,
    bench_quality,
    bench_store,
    conversations,
    demo,
    drift,
    fit_classifier,
    fit_embedder,
    fit_prior,
    fit_words,
    fleet,
    outage,
    pacing,
    paretobandit_compare,
    paretobandit_tables,
    savings,
    strategies,
    told,
)
from simulations import run as scenario_run
from simulations.contestants import CONTESTANTS
from simulations.datasets import DatasetError, load
from simulations.metrics import OBJECTIVES
from simulations.paretobandit_rival import RivalError
from simulations.pools import RIVALS
from simulations.priors import prior_of_all, priors_of_each
from simulations.replay import DEFAULT_POLICIES, Plan, replay
from simulations.scenarios import SCENARIOS
from simulations.schedules import run_schedules
from simulations.tables import plain
from simulations.vectors import EmbeddingError

BENCHES: Final = ("quality", "times", "store", "gateway", "path", "memory")


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0, or 1 where something failed, with one sentence that says what."""
    options = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, _end)  # so that whoever ends us does not leave our servers behind
    try:
        options.run(options)
    except (
        DatasetError,
        demo.DemoError,
        told.ToldError,
        fleet.FleetError,
        EmbeddingError,
        RivalError,
        ValueError,
        OSError,
    ) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _end(_: int, __: FrameType | None) -> None:
    sys.exit(143)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m simulations", description=__doc__)
    commands = parser.add_subparsers(required=True)
    _add_demo(
        commands.add_parser("demo", help="recorded prompts through the real gateway: a table and a picture")
    )
    _add_fleet(commands.add_parser("fleet", help="leave recorded models and gateway running"))
    _add_replay(commands.add_parser("replay", help="the same policy offline over recorded outcomes"))
    _add_paretobandit(
        commands.add_parser(
            "paretobandit", help="ParetoBandit's published experiments, its wheel beside ours"
        )
    )
    _add_run(commands.add_parser("run", help="what may happen to a route, offline: tables and pictures"))
    _add_apgr(
        commands.add_parser("apgr", help="the gap between two models that a share of calls recovers, online")
    )
    _add_fits(commands)
    _add_bench(commands.add_parser("bench", help="decision quality and microseconds, as Markdown"))
    _add_schedules(
        commands.add_parser("schedules", help="the gateways' own code through failures drawn from seeds")
    )
    _add_drift(
        commands.add_parser("drift", help="how rarely drift is seen in vain, and how soon when there is some")
    )
    _add_pacing(commands.add_parser("pacing", help="a budget held in orders of requests that mean it ill"))
    _add_strategies(commands.add_parser("strategies", help="every strategy of a route on recorded outcomes"))
    _add_savings(
        commands.add_parser("savings", help="what a router's own log tells of other policies, and the truth")
    )
    _add_conversations(
        commands.add_parser("conversations", help="what staying with a model saves, through the real gateway")
    )
    commands.add_parser(
        "outage", help="a flaky and a frozen model: what clients notice of it, through the real gateway"
    ).set_defaults(run=outage.run)
    return parser


def _add_conversations(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "data", metavar="DIR", nargs="?", default="wheel", help='a folder of recorded outcomes, or "wheel"'
    )
    parser.add_argument("--conversations", type=_positive, default=200, metavar="N")
    parser.add_argument("--seeds", type=_positive, default=3, metavar="N", help="draws of the conversations")
    parser.set_defaults(run=conversations.run)


def _add_savings(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "data", metavar="DIR", nargs="?", default="wheel", help='a folder of recorded outcomes, or "wheel"'
    )
    parser.add_argument("--seeds", type=_positive, default=20, metavar="N", help="orders of the prompts")
    parser.add_argument("--limit", type=_positive, default=3000, metavar="N", help="at most so many requests")
    parser.add_argument(
        "--rated", type=_share, default=1.0, metavar="SHARE", help="of the answers, default 1"
    )
    parser.add_argument(
        "--floor", type=_share, metavar="SHARE", help="exploration floor, default the router's"
    )
    parser.add_argument(
        "--usd-per-quality", type=_worth, metavar="X", help="USD worth one full point of quality"
    )
    parser.set_defaults(run=savings.run)


def _add_strategies(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", metavar="DIR", nargs="+", help='folders of recorded outcomes, or "wheel"')
    parser.add_argument("--seeds", type=_positive, default=5, metavar="N", help="halves of the prompts")
    parser.add_argument("--limit", type=_positive, default=3000, metavar="N", help="at most so many requests")
    parser.add_argument(
        "--usd-per-quality", type=_worth, metavar="X", help="USD worth one full point of quality"
    )
    parser.set_defaults(run=strategies.run)


def _add_schedules(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--first", type=int, default=0, metavar="SEED")
    parser.add_argument("--count", type=_positive, default=300, metavar="N")
    parser.set_defaults(
        run=lambda options: run_schedules(range(options.first, options.first + options.count))
    )


def _add_pacing(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "data", metavar="DIR", nargs="?", default="wheel", help='a folder, or "wheel" (default)'
    )
    parser.add_argument("--seed", type=int, default=0, help="of the shuffled and the bursty order")
    parser.set_defaults(run=lambda options: pacing.run(load(options.data), seed=options.seed))


def _add_drift(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--labels", type=_positive, default=100_000, metavar="N", help="of each steady world")
    parser.add_argument("--runs", type=_positive, default=40, metavar="N", help="of each change")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--dask", metavar="ADDRESS", help="a Dask scheduler, for more cores than this machine has"
    )
    parser.set_defaults(
        run=lambda options: drift.run(
            drift.Plan(options.labels, options.runs, options.seed),
            cluster=options.dask,
            progress=sys.stderr.isatty(),
        )
    )


def _add_demo(parser: argparse.ArgumentParser) -> None:
    _add_data(parser)
    parser.add_argument("--requests", type=_positive, default=3000)
    parser.add_argument("--seed", type=int, default=0, help="which prompts, and in which order")
    parser.add_argument(
        "--report", type=Path, default=Path("demo-report"), help="folder for picture and page"
    )
    parser.set_defaults(run=_run_demo)


def _add_fleet(parser: argparse.ArgumentParser) -> None:
    _add_data(parser)
    parser.add_argument("--port", type=int, default=8080, help="the gateway's; 0 for any free one")
    parser.add_argument(
        "--folder", type=Path, default=Path(".state/fleet"), help="what was learned stays here"
    )
    parser.set_defaults(run=_run_fleet)


def _add_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", default="wheel", help='"wheel" (default) or a folder of recorded outcomes')
    parser.add_argument("--time-scale", type=float, default=200.0, help="recorded latency is divided by this")


def _add_replay(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", metavar="DIR", help='a folder of recorded outcomes, or "wheel"')
    parser.add_argument(
        "--policy",
        nargs="+",
        action="extend",
        choices=sorted(CONTESTANTS),
        metavar="NAME",
        help=f"any of {', '.join(CONTESTANTS)}; default: {', '.join(DEFAULT_POLICIES)}; each fixed model is always shown",
    )
    parser.add_argument("--objective", choices=OBJECTIVES, default="balanced")
    parser.add_argument(
        "--usd-per-quality", type=_worth, metavar="X", help="USD worth one full point of quality"
    )
    parser.add_argument(
        "--orders", type=_positive, default=5, metavar="N", help="random orders, each a cold start"
    )
    parser.add_argument("--limit", type=_positive, default=3000, metavar="N", help="at most so many prompts")
    parser.add_argument(
        "--floor", type=_share, default=0.02, help="cost: quality may lie so far below the best model's"
    )
    _add_prior(parser)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--trace", type=_writable, metavar="FILE", help="CSV of every decision")
    parser.add_argument("--json", type=_writable, metavar="OUT", help="the result as one JSON object")
    parser.set_defaults(run=_run_replay)


def _add_paretobandit(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="recorded outcomes with Gemini Flash, for the onboarding experiments",
    )
    parser.add_argument(
        "--seeds", type=_positive, default=20, metavar="N", help="streams a budget (default: 20)"
    )
    parser.add_argument("--vectors", choices=paretobandit_compare.VECTORS, default="minilm")
    parser.add_argument(
        "--experiment", nargs="+", action="extend", metavar="NAME", help="default: all of them"
    )
    _add_dask(parser)
    parser.set_defaults(run=_run_paretobandit)


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "scenario",
        nargs="+",
        choices=[scenario_run.ALL, *SCENARIOS],
        metavar="SCENARIO",
        help=f"{scenario_run.ALL}, or any of {', '.join(SCENARIOS)}",
    )
    parser.add_argument(
        "--data", nargs="+", default=["wheel"], metavar="DIR", help='folders, or "wheel" (default)'
    )
    parser.add_argument(
        "--policy", nargs="+", choices=sorted(CONTESTANTS), metavar="NAME", help="default: all"
    )
    parser.add_argument("--objective", choices=OBJECTIVES, default="balanced")
    parser.add_argument(
        "--usd-per-quality", type=_worth, metavar="X", help="USD worth one full point of quality"
    )
    parser.add_argument("--seeds", type=_positive, default=5, metavar="N")
    parser.add_argument("--limit", type=_positive, default=3000, metavar="N", help="requests a stream")
    parser.add_argument("--report", type=Path, default=Path("scenario-report"), metavar="FOLDER")
    _add_prior(parser)
    _add_dask(parser)
    parser.set_defaults(run=_run_scenarios)


def _run_scenarios(options: argparse.Namespace) -> None:
    plan = scenario_run.Plan(
        scenarios=tuple(options.scenario),
        contestants=tuple(options.policy or CONTESTANTS),
        objective=options.objective,
        usd_per_quality=options.usd_per_quality,
        seeds=options.seeds,
        limit=options.limit,
        prior=options.prior,
        priors=priors_of_each(options.prior),
        cluster=options.dask,
        progress=sys.stderr.isatty(),
    )
    scenario_run.run([load(name) for name in options.data], plan, report=options.report)


def _add_bench(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "what",
        metavar="quality | times | store | gateway | path | memory | DIR",
        nargs="*",
        help='which tables (default: all but memory), then folders of recorded outcomes, or "wheel" (default)',
    )
    parser.add_argument("--seeds", "--orders", type=_positive, default=5, metavar="N")
    parser.add_argument("--limit", type=_positive, default=3000, metavar="N", help="requests a stream")
    parser.add_argument("--part", nargs="+", choices=bench_quality.PARTS, default=bench_quality.PARTS)
    parser.add_argument(
        "--policy",
        nargs="+",
        choices=sorted(CONTESTANTS),
        metavar="NAME",
        default=RIVALS,
        help=f"rivals; default: {', '.join(RIVALS)}",
    )
    _add_prior(parser)
    _add_embedder(parser)
    _add_dask(parser)
    parser.add_argument("--json", type=_writable, metavar="OUT", help="every seed's gaps as one JSON object")
    parser.add_argument("--rounds", type=_positive, default=3, metavar="N", help="of the gateway's bench")
    parser.add_argument(
        "--without-rivals", action="store_true", help="of the gateway: install and measure no others"
    )
    parser.set_defaults(run=_run_bench)


def _add_prior(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--prior",
        default="none",
        metavar="none|shipped|leave-out|upside-down|FILE",
        help="what the router knows beforehand: nothing (default), what ships, what fit-prior makes of the other "
        "folders named here, that with every model's level turned upside down, or a file of fit-prior",
    )


def _add_embedder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--embedder",
        type=Path,
        metavar="FILE",
        help="of fit-embedder, for a gateway that has one; default: none",
    )
    _add_endpoint(parser)


def _add_endpoint(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--base-url", metavar="URL", help="where the embedder answers; default: MiniLM, from a wheel"
    )
    parser.add_argument("--api-key-env", metavar="VARIABLE", help="that holds the embedder's key")


def _add_dask(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dask", metavar="ADDRESS", help="of a Dask scheduler, e.g. tcp://host:8786; default: this machine"
    )


def _run_paretobandit(options: argparse.Namespace) -> None:
    setting = paretobandit_compare.Setting(options.data, options.vectors)
    for text in paretobandit_tables.report(
        setting,
        names=options.experiment,
        seeds=options.seeds,
        progress=sys.stderr.isatty(),
        cluster=options.dask,
    ):
        print(text, flush=True)


def _run_bench(options: argparse.Namespace) -> None:
    named = options.what[:1] and options.what[0] in BENCHES
    tables, *data = options.what if named else ["", *options.what]
    if tables in ("", "quality"):
        datasets = [load(name) for name in data or ["wheel"]]
        features = fit_embedder.features_of(options, datasets)
        plan = bench_quality.Plan(
            seeds=options.seeds,
            limit=options.limit,
            rivals=tuple(options.policy),
            parts=tuple(options.part),
            prior=options.prior,
            priors=priors_of_each(options.prior, features),
            features=features,
            cluster=options.dask,
        )
        bench_quality.run(datasets, plan, json_to=options.json)
    if tables in ("", "times"):
        bench.times()
    if tables in ("", "store"):
        bench_store.run()
    if tables in ("", "gateway"):
        bench_gateway.run(bench_gateway.Plan(options.rounds, rivals=not options.without_rivals))
    if tables in ("", "path"):
        bench_path.path()
    if tables == "memory":
        bench_gateway.soak()


def _add_apgr(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", metavar="DIR", help="recorded outcomes of a weak and a strong model")
    parser.add_argument(
        "--others", nargs="+", default=[], metavar="DIR", help="folders to fit a prior on; default: no prior"
    )
    parser.add_argument("--family", default="", metavar="PREFIX", help="only prompts of these tasks")
    parser.add_argument("--limit", type=_positive, default=4000, metavar="N", help="the first N requests")
    parser.add_argument(
        "--seeds", type=_positive, default=3, metavar="N", help="orders; the first is as recorded"
    )
    parser.add_argument("--tasks", action="store_true", help="the caller names the task of each request")
    parser.set_defaults(run=apgr.run)


def _add_fits(commands: Any) -> None:
    for name, run, limit, what in (
        ("fit-prior", fit_prior.run, None, "what outcomes of many models say of a new one: a prior file"),
        (
            "fit-classifier",
            fit_classifier.run,
            None,
            "kinds of request, and who is good at which: a file for `strategy: classifier`",
        ),
        ("fit-words", fit_words.run, 4000, "the features' table of words, from texts alone"),
        (
            "fit-embedder",
            fit_embedder.run,
            4000,
            "what a gateway makes of an embedder's vectors, from texts alone: a projection",
        ),
    ):
        parser = commands.add_parser(name, help=what)
        parser.add_argument("data", metavar="DIR", nargs="+", help='folders of recorded outcomes, or "wheel"')
        parser.add_argument("--out", type=_writable, metavar="FILE", required=True)
        if name == "fit-embedder":
            parser.add_argument("--model", metavar="NAME", help="what the embedder calls its model")
            _add_endpoint(parser)
        elif name != "fit-words":
            _add_embedder(parser)
        parser.set_defaults(run=run, limit=limit)


def _run_demo(options: argparse.Namespace) -> None:
    demo.run(
        requests=options.requests,
        data=options.data,
        time_scale=options.time_scale,
        seed=options.seed,
        report=options.report,
    )


def _run_fleet(options: argparse.Namespace) -> None:
    plan = fleet.Plan(options.folder, options.data, options.time_scale, options.port)
    with fleet.running(plan) as up:
        print(_WELCOME.format(url=up.url, folder=options.folder), flush=True)
        up.gateway.wait()
    raise fleet.FleetError(f"the gateway ended; see {options.folder / 'gateway.log'}")


_WELCOME = """
The gateway is up on {url}, with three recorded models behind it. Try:

  curl {url}/v1/chat/completions -H 'content-type: application/json' \\
    -d '{{"model": "auto", "messages": [{{"role": "user", "content": "What is 12 times 12?"}}]}}'

and, with the id of the answer:

  curl {url}/feedback -H 'content-type: application/json' -d '{{"decision_id": "ID", "rating": 1}}'
  curl {url}/readyz

Ctrl-C stops it; what it learned stays in {folder} for the next start."""


def _run_replay(options: argparse.Namespace) -> None:
    plan = Plan(
        policies=tuple(dict.fromkeys(options.policy or DEFAULT_POLICIES)),
        objective=options.objective,
        usd_per_quality=options.usd_per_quality,
        quality_floor=options.floor,
        orders=options.orders,
        limit=options.limit,
        prior=prior_of_all(options.prior),
        seed=options.seed,
    )
    result = replay(load(options.data), plan, progress=sys.stderr.isatty())
    report = result.to_json()
    print(_table(report))
    if options.trace:
        result.write_trace(options.trace)
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")


def _table(report: dict[str, Any]) -> str:
    head = ["policy", "quality", "USD/1,000", "utility", "gap", "± se", "gap, last third", "decide µs"]
    lines = [_line(policy) for policy in report["policies"]]
    fixed, bound = report["best_fixed"], report["oracle"]
    worth = (
        f"utility = quality - cost / {report['usd_per_quality']:.3g} USD"
        if report["objective"] == "balanced"
        else f"objective: {report['objective']}"
    )
    return "\n".join(
        [
            f"{report['dataset']}: {report['prompts']} prompts x {len(report['models'])} models; {worth}",
            f"best fixed model in hindsight: {fixed['model']} ({fixed['utility']:+.4f}); oracle: {bound['utility']:+.4f}; gaps in points",
            "",
            plain([head, *lines]),
        ]
    )


def _line(policy: dict[str, Any]) -> list[str]:
    decide = policy["decision_us_p50"]
    return [
        policy["name"],
        f"{policy['quality']:.4f}",
        f"{1000 * policy['cost_usd']:.3f}",
        f"{policy['utility']:+.4f}",
        f"{100 * policy['gap_to_best_fixed']:+.2f}",
        f"{100 * policy['se']:.2f}",
        f"{100 * policy['gap_last_third']:+.2f}",
        "" if decide is None else f"{decide:.0f}",
    ]


def _worth(text: str) -> float:
    number = float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError("must be a number of USD above 0")
    return number


def _share(text: str) -> float:
    number = float(text)
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError("must be a number from 0 to 1")
    return number


def _writable(text: str) -> Path:
    path = Path(text)
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {path.parent} to write it to")
    return path


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


if __name__ == "__main__":
    sys.exit(main())
