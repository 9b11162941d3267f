"""Artifacts that several others have in common: written once, and no run waits for one that is there."""

from contextlib import AbstractContextManager
from pathlib import Path

from pipeline.artifacts import leases
from pipeline.artifacts.store import Store
from pipeline.execution.shared import SharedArtifact, SharedArtifacts


def share(store: Store) -> AbstractContextManager[SharedArtifact]:
    return SharedArtifacts(store, {}, {}, {}, print)("teacher", "stages.contract.context", [], {})


def is_held(store: Store, key: str) -> bool:
    return leases.holder(store.objects, f"teacher/{key}/{leases.LEASE}") is not None


def test_a_shared_artifact_is_held_while_it_is_written_and_not_while_it_is_read(store):
    with share(store) as writing:
        assert writing.output is not None and is_held(store, writing.output.key)
        made = writing.commit()
    with share(store) as reading:
        assert reading.output is None and not is_held(store, made.key)
        assert reading.commit().attempt == made.attempt


def test_a_shared_artifact_that_lost_a_file_is_made_again(store, capsys):
    for content in (b"first", b"second"):
        with share(store) as shared:
            shared.output.write_bytes("vectors", content)
            made = shared.commit()
        assert made.read_bytes("vectors") == content
        Path(made.base, "vectors").unlink()
    said = capsys.readouterr().out
    assert said.startswith("warning: teacher is made again: ") and "make it again with --force evaluate" in said


def test_a_shared_artifact_with_a_damaged_manifest_is_made_again(store):
    with share(store) as shared:
        made = shared.commit()
    Path(store.root, "teacher", made.key, "manifest.json").write_text("{")
    with share(store) as shared:
        assert shared.output is not None
        assert shared.commit().attempt != made.attempt
