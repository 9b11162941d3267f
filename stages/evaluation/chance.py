"""What a random ranking would find. Apart from the measures, which features do not depend on."""


def chance_of_hit(pool: int, relevant: int, k: int) -> float:
    """The exact expected hit@k of a random order of `pool` candidates of which `relevant` count (hypergeometric)."""
    miss = 1.0
    for place in range(min(k, pool)):
        miss *= max(pool - relevant - place, 0) / (pool - place)
    return 1.0 - miss if pool else 0.0
