"""Measures of a ranked list by the names that are logged and tabled: `hit@5`, `recall@5`, `mrr@10`, `ndcg@10`.

The values come from the `ir-measures` library (https://ir-measur.es), not from a formula of ours.

`hit@k` is 1 when any relevant candidate is among the first k. M-BEIR prints this as "Recall@k" (UniIR's evaluation
code; CLIP and BLIP do the same); `recall@k` here is the share of the relevant candidates that were found, which is a
much smaller number where a query has many. M-BEIR's headline is hit@5, but hit@10 for Fashion200K and FashionIQ.
"""

from collections.abc import Iterable, Mapping, Sequence
from urllib.parse import quote

MEASURES = ("hit@1", "hit@5", "hit@10", "recall@1", "recall@5", "recall@10", "mrr@10", "ndcg@10")
HITS = tuple(name for name in MEASURES if name.startswith("hit@"))
_LIBRARY = {"hit": "Success", "recall": "R", "mrr": "RR", "ndcg": "nDCG"}


def cutoff(name: str) -> int:
    """The k of a measure's name: 5 for `hit@5`."""
    return int(name.partition("@")[2])


def measure_queries(
    ranked: Mapping[str, Sequence[str]], relevant: Mapping[str, Iterable[str]], names: Sequence[str] = MEASURES
) -> dict[str, dict[str, float]]:
    """Each measure of each query: {qid: {"hit@5": 1.0, …}}.

    ranked: dids, best first, for each qid. relevant: the dids that count; one that no pool holds counts as missed.
    A query with an empty ranking has 0 everywhere.
    """
    import ir_measures

    parsed = {ir_measures.parse_measure(f"{_LIBRARY[n.partition('@')[0]]}@{cutoff(n)}"): n for n in names}
    qrels = [ir_measures.Qrel(qid, did, 1) for qid in ranked for did in set(relevant[qid])]
    # The library sorts by score and breaks ties in its own way; minus the rank leaves it nothing to break.
    run = [ir_measures.ScoredDoc(qid, did, -place) for qid, dids in ranked.items() for place, did in enumerate(dids)]
    values = {qid: dict.fromkeys(names, 0.0) for qid in ranked}
    for found in ir_measures.iter_calc(list(parsed), qrels, run):
        values[found.query_id][parsed[found.measure]] = float(found.value)
    return values


def mean(rows: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """The plain mean of each measure over `rows`: over queries, or over evaluation sets."""
    total: dict[str, float] = {}
    count = 0
    for row in rows:
        count += 1
        for name, value in row.items():
            total[name] = total.get(name, 0.0) + value
    return {name: value / count for name, value in total.items()}


def trec_lines(qid: str, dids: Sequence[str], scores: Sequence[float], tag: str) -> list[str]:
    """Lines of a TREC run, `qid Q0 did rank score tag`.

    Equal scores are set apart by one millionth per rank, because trec_eval orders by score alone and would break our
    ties in another way. White space in an id would shift the columns, so it is percent-encoded.
    """
    lines, last = [], float("inf")
    for rank, (did, score) in enumerate(zip(dids, scores, strict=True), start=1):
        last = min(round(score, 6), last - 1e-6)
        lines.append(f"{_field(qid)} Q0 {_field(did)} {rank} {last:.6f} {tag}\n")
    return lines


def _field(name: str) -> str:
    return "".join(quote(sign, safe="") if sign.isspace() or sign == "%" else sign for sign in name)
