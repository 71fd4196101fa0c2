"""A small pseudo-random number generator with the same numbers on every machine and Python version.

`random.Random.shuffle` and similar functions may change their draws between Python versions. The embedded world has to
be the same bytes everywhere, so it uses SplitMix64 (Steele, Lea and Flood, OOPSLA 2014) with integer arithmetic alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")

_MASK = (1 << 64) - 1


class Prng:
    """SplitMix64, with the few kinds of draws that the world needs."""

    def __init__(self, seed: int) -> None:
        self._state = seed & _MASK

    def bits(self) -> int:
        """The next 64 random bits."""
        self._state = (self._state + 0x9E3779B97F4A7C15) & _MASK
        z = self._state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
        return z ^ (z >> 31)

    def below(self, n: int) -> int:
        """A random integer in 0..n-1 (the bias of the product method is below n / 2**64)."""
        return (self.bits() * n) >> 64

    def choice(self, items: Sequence[T]) -> T:
        """A random one of the items."""
        return items[self.below(len(items))]

    def shuffled(self, items: Sequence[T]) -> list[T]:
        """A new list with the items in random order (Fisher-Yates)."""
        result = list(items)
        for i in range(len(result) - 1, 0, -1):
            j = self.below(i + 1)
            result[i], result[j] = result[j], result[i]
        return result

    def sample(self, items: Sequence[T], k: int) -> list[T]:
        """k different items in random order."""
        return self.shuffled(items)[:k]
