"""M-BEIR as it was published: its sixteen sets, with how many queries and candidates each has.

Queries are from UniIR (arXiv 2311.17136), table 1, which gives them in thousands. Sizes of pools, to the last
candidate, are those of the indexes that Pyserini publishes of every pool (castorini/pyserini at 0a0be29,
`pyserini/resources/prebuilt-indexes/faiss/m-beir-faiss.json`); its index of the union has as many as all of them
together, 5,609,079. Every test pool is searched by itself and as a part of the union.
"""

from dataclasses import dataclass

TEXT, IMAGE, BOTH = "text", "image", "image,text"


@dataclass(frozen=True)
class PublishedSet:
    """A data set's part in a task; `train`, `val` and `test` are queries, `pool` candidates."""

    dataset: str
    number: int
    task: int
    query: str
    target: str
    train: int
    val: int
    test: int
    pool: int

    @property
    def name(self) -> str:
        """As evaluation calls it."""
        return f"{self.dataset}_task{self.task}"


SETS = (
    PublishedSet("visualnews", 0, 0, TEXT, IMAGE, 99_000, 20_000, 20_000, 542_246),
    PublishedSet("mscoco", 9, 0, TEXT, IMAGE, 100_000, 24_800, 24_800, 5_000),
    PublishedSet("fashion200k", 1, 0, TEXT, IMAGE, 15_000, 1_700, 1_700, 201_824),
    PublishedSet("webqa", 2, 1, TEXT, TEXT, 16_000, 1_700, 2_400, 544_457),
    PublishedSet("edis", 3, 2, TEXT, BOTH, 26_000, 3_200, 3_200, 1_047_067),
    PublishedSet("webqa", 2, 2, TEXT, BOTH, 17_000, 1_700, 2_500, 403_196),
    PublishedSet("visualnews", 0, 3, IMAGE, TEXT, 100_000, 20_000, 20_000, 537_568),
    PublishedSet("mscoco", 9, 3, IMAGE, TEXT, 113_000, 5_000, 5_000, 24_809),
    PublishedSet("fashion200k", 1, 3, IMAGE, TEXT, 15_000, 4_800, 4_800, 61_707),
    PublishedSet("nights", 4, 4, IMAGE, IMAGE, 16_000, 2_000, 2_000, 40_038),
    PublishedSet("oven", 5, 6, BOTH, TEXT, 150_000, 50_000, 50_000, 676_667),
    PublishedSet("infoseek", 6, 6, BOTH, TEXT, 141_000, 11_000, 11_000, 611_651),
    PublishedSet("fashioniq", 7, 7, BOTH, IMAGE, 16_000, 2_000, 6_000, 74_381),
    PublishedSet("cirr", 8, 7, BOTH, IMAGE, 26_000, 2_000, 4_000, 21_551),
    PublishedSet("oven", 5, 8, BOTH, BOTH, 157_000, 14_700, 14_700, 335_135),
    PublishedSet("infoseek", 6, 8, BOTH, BOTH, 143_000, 17_600, 17_600, 481_782),
)
CANDIDATES = sum(one.pool for one in SETS)
TRAIN_QUERIES = 1_150_203
"""Exactly, before the up-sampling of small sets: UniIR's issue 6."""
UNION_BYTES = 2.43e9
"""Of `mbeir_union_test_cand_pool.jsonl`, in which every candidate stands once."""
PICTURE_BYTES = 170e9
"""Of all pictures: the parts of `mbeir_images.tar.gz`, which compression leaves as they are."""
