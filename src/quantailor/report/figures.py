"""What intervals need beyond a normal distribution."""

from __future__ import annotations

import math

from quantailor.records import Estimate


def t95(degrees_of_freedom: int) -> float:
    """Half a 95 % interval of Student's t, in standard deviations.

    Exact for 1 and 2 degrees of freedom, else the expansion in 1/n of Abramowitz and Stegun 26.7.5, within 1 %.
    """
    n = max(1, degrees_of_freedom)
    if n <= 2:
        return (12.706, 4.303)[n - 1]
    z = 1.959964
    terms = (z, (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96, (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384)
    return math.fsum(term / n**power for power, term in enumerate(terms))


def hundredths(share: Estimate) -> Estimate:
    """A share as per cent."""
    return Estimate(100 * share.value, 100 * share.se)
