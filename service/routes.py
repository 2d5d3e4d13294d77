"""Routes as they are served: what a client may put into `model`, and the arms, policy and learning behind it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Final

from bandit.arms import Arm
from bandit.newcomers import Newcomers
from bandit.objective import Balanced, Cost, Objective, Quality
from bandit.policy import Fixed, Policy, Ramped, Thompson, Uniform
from bandit.prediction import QualityModel
from bandit.quality import SharedBaseline
from feedback.intake import Route as LearnedRoute
from feedback.records import policy_tag
from service.errors import BadRequestError, ModelNotFoundError
from service.extension import Extension
from service.settings import DEFAULT_TENANT, Model, Route, Rule, Settings

WEIGHING: Final = ("bandit", "classifier")  # strategies with an objective

Routes = Mapping[str, "ServedRoute"]  # by what a client may ask for


@dataclass(frozen=True)
class ServedRoute:
    """name: what the client asked for. policy_tag: 8 bytes that name policy and quality model in every record.

    configured: the route as the file has it; None for a model asked for by its own name, which is not routed.
    sticks: conversations may stay with a model, because some model here bills a cached prompt for less.
    """

    name: str
    models: Mapping[str, Model]
    policy: Policy
    policy_tag: bytes
    learned: LearnedRoute
    configured: Route | None = None
    sticks: bool = False

    @cached_property
    def arms(self) -> tuple[Arm, ...]:
        return tuple(model.arm for model in self.models.values())

    @property
    def weighs(self) -> bool:
        """What a request is like tells which model it goes to."""
        return self.configured is not None and self.configured.strategy in WEIGHING

    @property
    def rules(self) -> tuple[Rule, ...]:
        return self.configured.rules if self.configured else ()

    @property
    def hedge_after_s(self) -> float | None:
        return self.configured.hedge_after_s if self.configured else None

    def policy_for(self, wishes: Extension) -> tuple[Policy, bytes]:
        """The policy and its tag, with what one request wants otherwise. Raises BadRequestError."""
        if not wishes.changes_policy:
            return self.policy, self.policy_tag
        if self.configured is None or not self.weighs:
            message = (
                f"'{self.name}' weighs nothing, so no objective can be given; ask for a route that learns"
            )
            raise BadRequestError(message, param="router")
        own = self.configured
        wanted = replace(
            own,
            objective=wishes.objective or own.objective,
            usd_per_quality=_given(wishes.usd_per_quality, own.usd_per_quality),
            quality_floor=_given(wishes.quality_floor, own.quality_floor),
            exploration_floor=_given(wishes.exploration_floor, own.exploration_floor),
        )
        if wanted.objective != "cost":
            wanted = replace(wanted, baseline=None, confidence=None)
        if wanted.objective == "balanced" and wanted.usd_per_quality is None:
            message = "router.usd_per_quality is needed: this route does not say what quality is worth"
            raise BadRequestError(message, param="router.usd_per_quality")
        policy = _policy(wanted)
        return policy, policy_tag(policy, self.policy_tag)


def scope_of_route(route: str, tenant: str = DEFAULT_TENANT) -> str:
    return f"{tenant}.{route}"


def quality_models(settings: Settings) -> dict[str, QualityModel]:
    """By scope: the quality model of the route's log. Each tenant's routes learn from its own traffic."""
    models = {name: quality_model(settings, name) for name in settings.routes}
    return {
        scope_of_route(name, tenant): model for tenant in settings.tenants for name, model in models.items()
    }


def quality_model(settings: Settings, route: str) -> QualityModel:
    """The route's models and what is believed of them: by its classifier, or before the first rating."""
    own = settings.routes[route]
    if own.classifier is not None:
        return own.classifier
    arms = tuple(settings.models[model].arm for model in own.models)
    return SharedBaseline(own.prior, arms, anchor=own.anchor)


def served_routes(settings: Settings, learned: Mapping[str, LearnedRoute]) -> dict[str, Routes]:
    """By tenant: every name that a client may ask for, the routes, and each model by its own name.

    A model asked for by name is not routed, but what it does is learned in the first route that lists it.
    """
    return {tenant: _served(settings, learned, tenant) for tenant in settings.tenants}


def _served(settings: Settings, learned: Mapping[str, LearnedRoute], tenant: str) -> Routes:
    routes = {
        name: _routed(name, settings, learned[scope_of_route(name, tenant)]) for name in settings.routes
    }
    direct: dict[str, ServedRoute] = {}
    for route in routes.values():
        for model in (*route.models, *_called_by_cascades(route)):
            direct.setdefault(model, _direct(settings.models[model], route.learned))
    return routes | direct


def _called_by_cascades(route: ServedRoute) -> list[str]:
    cascades = [model.cascade for model in route.models.values() if model.cascade]
    judges = [cascade.judge for cascade in cascades if cascade.judge]
    return [stage for cascade in cascades for stage in cascade.models] + judges


def find_route(routes: Mapping[str, ServedRoute], name: str) -> ServedRoute:
    """Raises ModelNotFoundError."""
    route = routes.get(name)
    if route is None:
        raise ModelNotFoundError(name, routes)
    return route


def _routed(name: str, settings: Settings, learned: LearnedRoute) -> ServedRoute:
    route = settings.routes[name]
    policy = _policy(route)
    models = {m: settings.models[m] for m in route.models if not settings.models[m].withdrawn}
    cheaper = any(m.price_usd_per_mtok_cached_in < m.arm.price_usd_per_mtok_in for m in models.values())
    return ServedRoute(
        name=name,
        models=models,
        policy=policy,
        policy_tag=policy_tag(policy, quality_model(settings, name)),
        learned=learned,
        configured=route,
        sticks=route.sticky_sessions and cheaper and route.strategy in WEIGHING,
    )


def _direct(model: Model, learned: LearnedRoute) -> ServedRoute:
    policy = Fixed()
    return ServedRoute(
        name=model.arm.name,
        models={model.arm.name: model},
        policy=policy,
        policy_tag=policy_tag(policy),
        learned=learned,
    )


def _policy(route: Route) -> Policy:
    policy = _strategy(route)
    return policy if route.ramp is None else Ramped(policy, route.ramp.baseline, route.ramp.share)


def _strategy(route: Route) -> Policy:
    match route.strategy:
        case "fixed":
            return Fixed()
        case "uniform":
            return Uniform()
        case "classifier":
            return Thompson(_objective(route), floor=route.exploration_floor, newcomers=Newcomers(share=0.0))
        case _:
            return Thompson(_objective(route), floor=route.exploration_floor, newcomers=route.newcomers)


def _objective(route: Route) -> Objective:
    match route.objective:
        case "quality":
            return Quality()
        case "cost":
            return Cost(route.quality_floor, route.baseline or "", route.confidence)
        case _:
            assert route.usd_per_quality is not None, "validated with the settings"
            return Balanced(route.usd_per_quality)


def _given(wish: float | None, otherwise: float | None) -> Any:
    return otherwise if wish is None else wish
