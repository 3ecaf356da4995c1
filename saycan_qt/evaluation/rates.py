"""How sure is a rate, or that one is better than another? Wilson score intervals, and McNemar's exact test."""

from __future__ import annotations

import math


def wilson(successes: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson score interval of a rate (95 % at z = 1.96), e.g. (0.40, 0.60) for 50 of 100."""
    if n == 0:
        return 0.0, 1.0
    p, zz = successes / n, z * z
    center, spread = p + zz / (2 * n), z * math.sqrt(p * (1 - p) / n + zz / (4 * n * n))
    low, high = (center - spread) / (1 + zz / n), (center + spread) / (1 + zz / n)
    return max(0.0, min(p, low)), min(1.0, max(p, high))  # p lies within, whatever the rounding


def mcnemar(won: int, lost: int) -> float:
    """One-sided exact p of pairs of episodes: how likely it were to win at least `won` of the `won + lost` that ended
    differently, if each were a toss-up [McNemar 1947]; 1 where none did. 5 : 0 gives 1/32."""
    pairs = won + lost
    return sum(math.comb(pairs, k) for k in range(won, pairs + 1)) / 2**pairs
