"""Which part of a training image a step sees: random crops, the usual cure where photos are few.

A crop leaves out where the photographer stood. It is only right where the part of a picture means what the whole
means: a photo of a product, and not a drawing whose text tells what is left of what.
"""

import math

import numpy as np

from stages.model.rows import Box

PROPORTIONS = (3 / 4, 4 / 3)
"""Of a crop's width to its height, relative to the image's own (Inception, Szegedy et al. 2015, arXiv 1409.4842)."""


def random_box(draw: int, least: float) -> Box | None:
    """A part of at least `least` of an image's area, evenly drawn; None is the whole.

    Args:
        draw: decides everything that is random.
        least: share of the area, in (0, 1]; 1 always sees the whole.
    """
    if least >= 1:
        return None
    random = np.random.default_rng(draw)
    area = random.uniform(least, 1)
    proportion = math.exp(random.uniform(*np.log(PROPORTIONS)))
    width = min(1.0, max(area, math.sqrt(area * proportion)))
    height = area / width
    left, top = random.uniform(0, 1 - width), random.uniform(0, 1 - height)
    return left, top, left + width, top + height
