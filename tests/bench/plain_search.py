"""Search as a user would write it without Puma: sentence-transformers, FAISS, and a table of what was found.

`python -m tests.bench.plain_search JSON` with the keyword arguments of `Plain` and `queries`.
"""

import json
import sys
from collections.abc import Sequence

K = 10


class Plain:
    """The student by sentence-transformers over a flat FAISS index of one modality's vectors.

    Args:
        model: the student's directory.
        files: Parquet of `did`, `modality` and `vector`.
        want: the modality.
        prompt: what stands before a query.
    """

    def __init__(self, model: str, files: Sequence[str], want: str, prompt: str) -> None:
        from stages.export.loaders import see_torchvision

        see_torchvision()
        import faiss
        import numpy as np
        import pyarrow.parquet as pq
        import torch
        from sentence_transformers import SentenceTransformer

        table = pq.read_table(list(files), columns=["did", "modality", "vector"], filters=[("modality", "=", want)])
        flat = table["vector"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        vectors_ND = np.ascontiguousarray(flat.reshape(len(table), -1), np.float32)
        self.dids, self.prompt = table["did"].to_pylist(), prompt
        self.index = faiss.IndexFlatIP(vectors_ND.shape[1])
        self.index.add(vectors_ND)
        self.model = SentenceTransformer(model, device="cpu", model_kwargs={"dtype": torch.float32})

    def search(self, queries: Sequence[str]) -> list[list[tuple[str, float]]]:
        """(id, score) of the nearest of each query."""
        asked = [f"{self.prompt}{query}" for query in queries]
        vectors_QD = self.model.encode(asked, batch_size=len(asked), show_progress_bar=False)
        scores, places = self.index.search(vectors_QD, K)
        pairs = zip(places.tolist(), scores.tolist(), strict=True)
        return [[(self.dids[place], score) for place, score in zip(*pair, strict=True)] for pair in pairs]


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    queries = given.pop("queries")
    print(json.dumps(Plain(**given).search(queries)))
