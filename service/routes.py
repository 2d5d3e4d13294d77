"""Routes as they are served: what a client may put into `model`, and the arms, policy and learning behind it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from bandit.arms import Arm
from bandit.objective import Balanced, Cost, Objective, Quality
from bandit.policy import Fixed, Policy, Thompson, Uniform
from bandit.quality import QualityModel, SharedBaseline
from feedback.intake import Route as LearnedRoute
from feedback.records import policy_tag
from service.config import Model, Route, Settings
from service.errors import ModelNotFoundError

TENANT: Final = "default"  # one tenant until keys tell them apart
QUALITY_MODEL: Final[QualityModel] = SharedBaseline()


@dataclass(frozen=True, slots=True)
class ServedRoute:
    """name: what the client asked for. policy_tag: 8 bytes that name policy and quality model in every record."""

    name: str
    models: Mapping[str, Model]
    policy: Policy
    policy_tag: bytes
    learned: LearnedRoute

    @property
    def arms(self) -> tuple[Arm, ...]:
        return tuple(model.arm for model in self.models.values())


def scope_of_route(route: str) -> str:
    return f"{TENANT}.{route}"


def quality_models(settings: Settings) -> dict[str, QualityModel]:
    """By scope: the quality model of the route's log."""
    return {scope_of_route(name): QUALITY_MODEL for name in settings.routes}


def served_routes(settings: Settings, learned: Mapping[str, LearnedRoute]) -> dict[str, ServedRoute]:
    """Every name that a client may ask for: the routes, and each model by its own name.

    A model asked for by name is not routed, but what it does is learned in the first route that lists it.
    """
    routes = {name: _routed(name, settings, learned) for name in settings.routes}
    direct: dict[str, ServedRoute] = {}
    for route in routes.values():
        for name in route.models:
            direct.setdefault(name, _direct(name, route))
    return routes | direct


def find_route(routes: Mapping[str, ServedRoute], name: str) -> ServedRoute:
    """Raises ModelNotFoundError."""
    route = routes.get(name)
    if route is None:
        raise ModelNotFoundError(name, routes)
    return route


def _routed(name: str, settings: Settings, learned: Mapping[str, LearnedRoute]) -> ServedRoute:
    route = settings.routes[name]
    policy = _policy(route)
    return ServedRoute(
        name=name,
        models={model: settings.models[model] for model in route.models},
        policy=policy,
        policy_tag=policy_tag(policy, QUALITY_MODEL),
        learned=learned[scope_of_route(name)],
    )


def _direct(model: str, route: ServedRoute) -> ServedRoute:
    policy = Fixed()
    return ServedRoute(
        name=model,
        models={model: route.models[model]},
        policy=policy,
        policy_tag=policy_tag(policy),
        learned=route.learned,
    )


def _policy(route: Route) -> Policy:
    match route.strategy:
        case "fixed":
            return Fixed()
        case "uniform":
            return Uniform()
        case _:
            return Thompson(_objective(route), floor=route.exploration_floor)


def _objective(route: Route) -> Objective:
    match route.objective:
        case "quality":
            return Quality()
        case "cost":
            return Cost(route.quality_floor)
        case _:
            assert route.usd_per_quality is not None, "validated with the settings"
            return Balanced(route.usd_per_quality)
