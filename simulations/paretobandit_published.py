"""What ParetoBandit's authors published (arXiv 2604.00136 and the generated tables of its repository, 20 seeds each)."""

from typing import Final

# budget -> reward, 95 % interval, utilisation; budgets in the order of the stationary experiment
STATIONARY: Final = (
    (0.793, 0.793, 0.793, 0.98),
    (0.813, 0.812, 0.814, 1.00),
    (0.859, 0.857, 0.860, 1.00),
    (0.898, 0.894, 0.901, 0.98),
    (0.917, 0.916, 0.919, 0.91),
    (0.924, 0.924, 0.925, 0.89),
    (0.929, 0.928, 0.930, 0.74),
)

# start -> regret after 1,824 requests, its standard deviation over seeds, regret after 200
UNCONSTRAINED: Final = {"warm": (55.0, 1.6, 6.2), "cold": (87.0, 24.8, 16.2)}

# budget -> reward in P1, P2, P3
DEGRADATION: Final = {
    "tight": (0.863, 0.800, 0.818),
    "moderate": (0.885, 0.795, 0.863),
    "loose": (0.910, 0.794, 0.898),
}

# budget -> spend over budget in P1, P2, P3
PRICE_DROP: Final = {
    "tight": (1.01, 0.95, 1.04),
    "moderate": (0.99, 0.65, 1.00),
    "loose": (0.96, 0.23, 0.95),
}

# case, budget -> reward after the newcomer joined, its share of the phase, its share of the last 200, adopted at (their
# measure: over 10 % of the last 100 requests for 50 in a row, the forced pulls' window left out)
ONBOARDING: Final = {
    ("good", "tight"): (0.866, 0.086, 0.044, 142),
    ("good", "moderate"): (0.899, 0.129, 0.078, 121),
    ("good", "loose"): (0.918, 0.159, 0.102, 121),
    ("good", "none"): (0.929, 0.133, 0.073, 121),
    ("bad", "tight"): (0.871, 0.011, 0.0, None),
    ("bad", "moderate"): (0.895, 0.011, 0.0, None),
    ("bad", "loose"): (0.913, 0.011, 0.0, None),
    ("bad", "none"): (0.925, 0.011, 0.0, None),
    ("dear", "tight"): (0.832, 0.030, 0.012, None),
    ("dear", "moderate"): (0.868, 0.048, 0.025, None),
    ("dear", "loose"): (0.904, 0.094, 0.061, 150),
    ("dear", "none"): (0.929, 0.133, 0.073, 121),
}
