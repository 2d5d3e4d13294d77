"""Arms: the models that may be called, and which of them can serve a request."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from bandit.types import Needs

NOTHING_UNAVAILABLE: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Arm:
    """A model that may be called. Prices in USD per million tokens; window in tokens (prompt and answer together).

    tools, images, json_schema: it can call tools, see images, keep to a schema that is given for its answer.
    expected_quality: what the operator expects of it on this route, 0..1, a belief worth expected_quality_ratings ratings;
    None: what the prior says. sibling: a model whose name the prior may know better than this one's.
    """

    name: str
    price_usd_per_mtok_in: float
    price_usd_per_mtok_out: float
    context_window_tokens: int = 128_000
    tools: bool = True
    images: bool = True
    json_schema: bool = True
    expected_quality: float | None = None
    expected_quality_ratings: float = 20.0
    sibling: str = ""

    def cost_usd(self, tokens_in: float, tokens_out: float) -> float:
        """USD = (tokens_in x price_in + tokens_out x price_out) / 10^6."""
        return (tokens_in * self.price_usd_per_mtok_in + tokens_out * self.price_usd_per_mtok_out) * 1e-6


@dataclass(frozen=True, slots=True)
class Exclusion:
    """Why an arm cannot serve this request: a code from a closed list, and one sentence for a person."""

    arm: str
    code: str  # "context_window" | "tools" | "images" | "json_schema" | "unavailable", or a strategy's own
    reason: str


def eligible(
    arms: Iterable[Arm], needs: Needs, unavailable: Mapping[str, str] = NOTHING_UNAVAILABLE
) -> tuple[tuple[Arm, ...], tuple[Exclusion, ...]]:
    """Split arms into those that can serve the request and those that cannot, each of these with its reason.

    unavailable: arm name -> why it cannot be called now (no key, failed in this request, ...).
    """
    arms = tuple(arms)
    tokens = needs.tokens_in + (needs.max_tokens_out or 0)
    if not (needs.tools or needs.images or needs.json_schema or unavailable):
        windows = [arm.context_window_tokens for arm in arms]
        if not windows or tokens <= min(windows):
            return arms, ()  # as nearly always
    able: list[Arm] = []
    unable: list[Exclusion] = []
    for arm in arms:
        exclusion = _exclusion(arm, needs, unavailable.get(arm.name))
        if exclusion is None:
            able.append(arm)
        else:
            unable.append(exclusion)
    return tuple(able), tuple(unable)


def _exclusion(arm: Arm, needs: Needs, unavailable: str | None) -> Exclusion | None:
    if unavailable is not None:
        return Exclusion(arm.name, "unavailable", unavailable)
    if needs.tools and not arm.tools:
        return Exclusion(arm.name, "tools", "the request offers tools and this model cannot call them")
    if needs.images and not arm.images:
        return Exclusion(arm.name, "images", "the request shows images and this model cannot see them")
    if needs.json_schema and not arm.json_schema:
        return Exclusion(
            arm.name, "json_schema", "the request gives a JSON schema and this model keeps to none"
        )
    tokens = needs.tokens_in + (needs.max_tokens_out or 0)
    if tokens > arm.context_window_tokens:
        reason = f"needs about {tokens} tokens, the window holds {arm.context_window_tokens}"
        return Exclusion(arm.name, "context_window", reason)
    return None
