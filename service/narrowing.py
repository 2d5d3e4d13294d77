"""Narrowing: which of a route's models are up for choice at all, before any strategy chooses.

    the request's own `router.candidates` -> the route's first rule that fits -> (needs, health: bandit.arms, deployments)

Everything left out has its reason.
"""

from collections.abc import Iterable, Sequence

from bandit.arms import Arm, Exclusion
from bandit.types import Needs
from service.access import Caller
from service.errors import BadRequestError
from service.request import ChatRequest
from service.settings import Rule, When


def narrowed(
    arms: Sequence[Arm], rules: Iterable[Rule], ask: ChatRequest, caller: Caller, needs: Needs
) -> tuple[tuple[Arm, ...], tuple[Exclusion, ...]]:
    """Raises BadRequestError for candidates that are none."""
    kept = tuple(arms)
    out: tuple[Exclusion, ...] = ()
    if ask.extension.candidates is not None:
        kept, out = _wanted(kept, ask.extension.candidates)
    rule = next((rule for rule in rules if fits(rule.when, ask, caller, needs)), None)
    if rule is None:
        return kept, out
    reason = f"{rule.name} leaves it out"
    ruled_out = tuple(Exclusion(arm.name, "rule", reason) for arm in kept if arm.name not in rule.models)
    return tuple(arm for arm in kept if arm.name in rule.models), out + ruled_out


def fits(when: When, ask: ChatRequest, caller: Caller, needs: Needs) -> bool:
    """The request meets everything that the rule asks for."""
    return (
        (when.task is None or ask.prompt.task in when.task)
        and (when.tenant is None or caller.tenant in when.tenant)
        and (when.tokens_from is None or needs.tokens_in >= when.tokens_from)
        and (when.tokens_to is None or needs.tokens_in <= when.tokens_to)
        and (when.tools is None or needs.tools == when.tools)
        and (when.images is None or needs.images == when.images)
        and (when.header is None or all(caller.header(name) == value for name, value in when.header))
        and (when.keywords is None or _mentions(ask.prompt.user, when.keywords))
    )


def _mentions(text: str, keywords: Iterable[str]) -> bool:
    lower = text.lower()
    return any(word in lower for word in keywords)


def _wanted(arms: tuple[Arm, ...], names: Sequence[str]) -> tuple[tuple[Arm, ...], tuple[Exclusion, ...]]:
    known = [arm.name for arm in arms]
    for name in names:
        if name not in known:
            told = f"router.candidates names {name[:100]!r}; this route has {', '.join(known)}"
            raise BadRequestError(told, param="router.candidates")
    out = tuple(
        Exclusion(arm.name, "candidates", "the request does not name it as a candidate")
        for arm in arms
        if arm.name not in names
    )
    return tuple(arm for arm in arms if arm.name in names), out
