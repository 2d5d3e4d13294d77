"""ParetoBandit's own code in a process of its own: one JSON command a line on stdin, one JSON answer a line on stdout.

    python -m simulations.paretobandit_rival_process

Only this process imports `pareto_bandit` (and with it joblib and scikit-learn). Nothing of it is changed or replaced: the
router, the pacer, the warm priors, the PCA and the feature code are those of the installed wheel. An answer is the
command's result, or {"error": text}. Routers are named by the caller, so one process serves any number of streams.
"""

import json
import logging
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Command = dict[str, Any]
Answer = dict[str, Any]


class Desk:
    """The commands; each takes and returns plain JSON values."""

    def __init__(self) -> None:
        from pareto_bandit import config  # noqa: PLC0415 - imported here and nowhere else
        from pareto_bandit.budget_pacer import BudgetPacer, PacingMode  # noqa: PLC0415
        from pareto_bandit.feature_service import FeatureService  # noqa: PLC0415
        from pareto_bandit.router import BanditRouter  # noqa: PLC0415

        self._config, self._features = config, FeatureService
        self._router_class, self._pacer_class, self._adaptive = BanditRouter, BudgetPacer, PacingMode.ADAPTIVE
        self._routers: dict[str, Any] = {}
        self._logs: dict[tuple[str, int], Any] = {}

    def defaults(self, _: Command) -> Answer:
        """The wheel's own published settings."""
        return {
            "warm": self._config.BEST_K3_HPARAMS,
            "cold": self._config.BEST_K3_TABULA_RASA_HPARAMS,
            "budgets_usd": self._config.K3_BUDGET_TARGETS,
            "degraded": [self._config.K3_FAILURE_ARM, self._config.K3_FAILURE_REWARD],
        }

    def features(self, command: Command) -> Answer:
        """Texts with their MiniLM embeddings, as an .npy file -> the vectors of its FeatureService, as another."""
        embeddings = dict(zip(command["texts"], np.load(command["embeddings"]), strict=True))
        service = self._features(
            custom_encoder=embeddings.__getitem__,
            embedding_dim=command["dimension"],
            pca_path=self._config.DEFAULT_PCA_PATH,
        )
        vectors = service.extract_features_batch(command["texts"])
        np.save(command["out"], vectors)
        return {"shape": list(vectors.shape)}

    def create(self, command: Command) -> Answer:
        """A router under a name, as the published experiments make it."""
        pacer = None
        if command["budget_usd"] is not None:
            pacer = self._pacer_class(
                target_avg_spend_usd=command["budget_usd"],
                mode=self._adaptive,
                lr=self._config.DEFAULT_PACER_LR,
                ema_alpha=self._config.DEFAULT_PACER_EMA_ALPHA,
                lambda_max=self._config.DEFAULT_PACER_LAMBDA_MAX,
            )
        self._routers[command["router"]] = self._router_class.create(
            model_registry=command["registry"],
            feature_service=self._features.for_precomputed(command["dimension"]),
            priors="warmup" if command["warm"] else "none",
            prior_n_effective=command["prior_n_effective"],
            alpha=command["alpha"],
            forgetting_factor=command["forgetting_factor"],
            cost_penalty=0.0,
            bandit_seed=command["seed"],
            budget_pacer=pacer,
        )
        return {}

    def route(self, command: Command) -> Answer:
        router = self._routers[command["router"]]
        arm, log = router.route(np.array(command["x"]))
        self._logs[command["router"], command["n"]] = log
        pacer = router.budget_pacer
        return {"arm": arm, "lambda": 0.0 if pacer is None else pacer.lambda_t}

    def timed(self, command: Command) -> Answer:
        """Microseconds of one `route()` on a ready vector, by the clock of this process."""
        router, x = self._routers[command["router"]], np.array(command["x"])
        begun = time.process_time_ns()
        for _ in range(command["times"]):
            router.route(x)
        return {"us": (time.process_time_ns() - begun) / command["times"] / 1e3}

    def feedback(self, command: Command) -> Answer:
        """Reward and true cost of a routed request; without a reward the pacer still sees the cost."""
        router = self._routers[command["router"]]
        log = self._logs.pop((command["router"], command["n"]))
        log.cost_usd = command["cost_usd"]
        if command["reward"] is not None:
            router.process_feedback(log.request_id, reward=command["reward"])
        elif router.budget_pacer is not None:
            router.budget_pacer.observe(command["cost_usd"])
        return {}

    def forced(self, command: Command) -> Answer:
        """The outcome of a pull that the experiment forced, as the published onboarding script tells it."""
        router = self._routers[command["router"]]
        if command["reward"] is not None:
            router.update(command["arm"], np.array(command["x"]), command["reward"], advance_time=True)
        if router.budget_pacer is not None:
            router.budget_pacer.observe(command["cost_usd"])
        return {}

    def register(self, command: Command) -> Answer:
        self._routers[command["router"]].register_model(
            command["arm"],
            speed=command["speed"],
            input_cost_per_m=command["input_cost_per_m"],
            output_cost_per_m=command["output_cost_per_m"],
        )
        return {}

    def price(self, command: Command) -> Answer:
        self._routers[command["router"]].update_model_pricing(
            command["arm"],
            input_cost_per_m=command["input_cost_per_m"],
            output_cost_per_m=command["output_cost_per_m"],
        )
        return {}

    def withdraw(self, command: Command) -> Answer:
        """An arm that can no longer be called."""
        router = self._routers[command["router"]]
        router.bandit.delete_arm(command["arm"])
        router.registry.pop(command["arm"], None)
        return {}


def main() -> None:
    logging.disable(logging.WARNING)  # its router warns of every relaxed ceiling
    warnings.simplefilter("ignore")
    answers = sys.stdout
    sys.stdout = sys.stderr  # whatever the library prints must not look like an answer
    desk = Desk()
    commands: dict[str, Callable[[Command], Answer]] = {
        name: getattr(desk, name) for name in vars(Desk) if not name.startswith("_")
    }
    for line in sys.stdin:
        command = json.loads(line)
        try:
            answer = commands[command["do"]](command)
        except Exception as error:  # noqa: BLE001 - the outermost edge of this process: told, not swallowed
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer, default=_plain) + "\n")
        answers.flush()


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else float(value)


if __name__ == "__main__":
    main()
