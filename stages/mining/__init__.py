"""Hard negatives, mined with the distilled student."""
