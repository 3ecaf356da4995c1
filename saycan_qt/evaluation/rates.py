"""How sure is a rate? Wilson score intervals."""

from __future__ import annotations

import math


def wilson(successes: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson score interval of a rate (95 % at z = 1.96), e.g. (0.40, 0.60) for 50 of 100."""
    if n == 0:
        return 0.0, 1.0
    p, zz = successes / n, z * z
    center, spread = p + zz / (2 * n), z * math.sqrt(p * (1 - p) / n + zz / (4 * n * n))
    return max(0.0, (center - spread) / (1 + zz / n)), min(1.0, (center + spread) / (1 + zz / n))
