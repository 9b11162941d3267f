"""The schemas of every dataset that passes between stages, and of rows as they are read; all readers and writers use
these.

Ids keep M-BEIR's names: `qid` is a query's, `did` a candidate's, both written "dataset_id:number". Modalities are
"text", "image" and "image,text". A pool is named by its file: `grocery_task0`, `union_test`.
"""

import pyarrow as pa

SPLITS = ("train", "val", "test")

QUERIES = pa.schema(
    [
        ("qid", pa.string()),  # unique within a split
        ("split", pa.string()),  # train, val or test
        ("dataset", pa.string()),  # name of the data set, "grocery"
        ("dataset_id", pa.int32()),  # the number before the colon of `qid`
        ("task_id", pa.int32()),  # M-BEIR's task: 0 t→i, 1 t→t, 2 t→it, 3 i→t, 4 i→i, 6 it→t, 7 it→i, 8 it→it
        ("modality", pa.string()),  # of the query
        ("target_modality", pa.string()),  # of its first positive
        ("text", pa.string()),  # normalised, without instruction; null where the modality has no text
        ("image_id", pa.string()),  # a row of `images`; null where the modality has no image
        ("positives", pa.list_(pa.string())),  # dids of all relevant candidates, at least one, all existing
        ("negatives", pa.list_(pa.string())),  # dids of hard negatives, may be empty, all existing
        ("pool", pa.string()),  # name of the local pool for val and test; null for train
    ]
)

CANDIDATES = pa.schema(
    [
        ("did", pa.string()),  # unique
        ("dataset_id", pa.int32()),  # the number before the colon of `did`
        ("modality", pa.string()),
        ("text", pa.string()),  # normalised; null where the modality has no text
        ("image_id", pa.string()),  # a row of `images`; null where the modality has no image
        ("content_id", pa.string()),  # hash of text and image: two dids with the same content share it
        ("pools", pa.list_(pa.string())),  # names of all pools that hold it, sorted
    ]
)

IMAGES = pa.schema(
    [
        ("image_id", pa.string()),  # unique: the first 32 hex digits of the SHA-256 of `bytes`
        ("bytes", pa.binary()),  # encoded, decodable, upright, within the pixel cap
        ("width", pa.int32()),  # pixels
        ("height", pa.int32()),  # pixels
        ("format", pa.string()),  # jpeg, png, webp or gif
    ]
)

REJECTS = pa.schema(
    [
        ("kind", pa.string()),  # query, candidate or image
        ("id", pa.string()),  # qid or did; null where the row has none, and for images
        ("source", pa.string()),  # "query/train/mbeir_x_train.jsonl:17", or the image's path
        ("reason", pa.string()),  # short fixed words, to count by
        ("detail", pa.string()),  # what exactly, for a person
    ]
)

INSTRUCTIONS = pa.schema(
    [
        ("dataset_id", pa.int32()),
        ("dataset", pa.string()),
        ("query_modality", pa.string()),
        ("target_modality", pa.string()),
        ("prompts", pa.list_(pa.string())),  # interchangeable wordings; the first is used outside training
    ]
)


def FEATURES(dim: int) -> pa.Schema:
    """Teacher vectors of `dim` numbers, one row for a query or a candidate."""
    return pa.schema(
        [
            ("side", pa.string()),  # query or candidate
            ("id", pa.string()),  # qid or did
            ("vector", pa.list_(pa.float16(), dim)),  # state at the read-out token, not normalised to length 1
        ]
    )


NEGATIVES = pa.schema(
    [
        ("qid", pa.string()),  # a train query
        ("positive_score", pa.float32()),  # cosine with its farthest positive; null where no positive is in the pool
        ("limit", pa.float32()),  # negatives score below this
        ("negatives", pa.list_(pa.string())),  # dids of mined hard negatives, hardest first, may be empty
        ("scores", pa.list_(pa.float32())),  # their cosines
        ("copies", pa.int32()),  # candidates left out because their content is a positive's or the query's own
        ("too_close", pa.int32()),  # candidates left out because they reach the limit
        ("left_out", pa.list_(pa.string())),  # dids of the closest of these: perhaps positives that nobody labelled
        ("left_out_scores", pa.list_(pa.float32())),
    ]
)


def EMBEDDINGS(dim: int) -> pa.Schema:
    """Candidate embeddings of `dim` numbers, as the index holds them."""
    return pa.schema(
        [
            ("did", pa.string()),
            ("dataset_id", pa.int32()),
            ("modality", pa.string()),
            ("pools", pa.list_(pa.string())),
            ("vector", pa.list_(pa.float16(), dim)),  # unit length
        ]
    )


_READ = [
    ("position", pa.int64()),  # see `stages.data.sources.chunks.position`
    ("source", pa.string()),  # file:line
    ("reason", pa.string()),  # null for a good row
    ("detail", pa.string()),
]

RAW_CANDIDATES = pa.schema(
    [
        *_READ,
        ("did", pa.string()),
        ("dataset_id", pa.int32()),
        ("modality", pa.string()),
        ("text", pa.string()),
        ("image_path", pa.string()),
        ("pool", pa.string()),
    ]
)

RAW_QUERIES = pa.schema(
    [
        *_READ,
        ("qid", pa.string()),
        ("split", pa.string()),
        ("dataset", pa.string()),  # null where neither the file name nor the instructions know it
        ("dataset_id", pa.int32()),
        ("task_id", pa.int32()),
        ("modality", pa.string()),
        ("text", pa.string()),
        ("image_path", pa.string()),
        ("positives", pa.list_(pa.string())),
        ("negatives", pa.list_(pa.string())),
        ("pool", pa.string()),  # null where the file decides, as in M-BEIR
    ]
)
