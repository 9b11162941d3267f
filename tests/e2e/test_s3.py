"""A run on object storage: every stage reads from it and writes to it, training keeps its checkpoints there."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.test_pipeline import STAGES
from tests.s3.servers import moto_server
from tests.tiny_models import write_checkpoint

pytestmark = pytest.mark.ray
ROOT = Path(__file__).resolve().parents[2]
AWS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}


def test_every_stage_works_from_and_to_object_storage(tmp_path, monkeypatch):
    for name, value in AWS.items():
        monkeypatch.setenv(name, value)
    teacher = write_checkpoint(tmp_path / "teacher", "qwen2_vl")
    small = ["data.scenes.train=24", "data.scenes.val=8", "data.scenes.test=8", "features.rows_per_shard=64"]
    cut = ["backbone.source=local", f"backbone.model={teacher}", "distill.steps=0", "train.checkpoint_every=2"]
    with moto_server() as address:
        from pipeline import s3

        s3.client(address, "us-east-1").create_bucket(Bucket="bucket")
        place = ["store=s3://bucket/puma", f"store_endpoint={address}", f"tracking_uri=sqlite:///{tmp_path}/mlflow.db"]

        def run(*options: str) -> dict:
            clean = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_"))}
            clean |= {"XDG_CACHE_HOME": str(tmp_path / "cache"), "PUMA_CACHE": str(tmp_path / "objects")}
            command = [sys.executable, str(ROOT / "pipeline" / "run.py"), "--recipe", "smoke", "--json", *options]
            done = subprocess.run(
                [*command, *place, *small, *cut], cwd=tmp_path, env=clean, capture_output=True, text=True, timeout=800
            )
            assert done.returncode == 0, done.stderr
            return json.loads(done.stdout)

        finished = run()
        assert list(finished["stages"]) == STAGES
        assert all(stage["uri"].startswith("s3://bucket/puma/") for stage in finished["stages"].values())
        assert 0 <= finished["metrics"]["student"]["local"]["hit@5"] <= 1
        assert {stage["action"] for stage in run("--plan")["stages"].values()} == {"cached"}
        listed = s3.client(address, "us-east-1").list_objects_v2(Bucket="bucket", Prefix="puma/train/")["Contents"]
        assert not [entry["Key"] for entry in listed if "/_work/" in entry["Key"]]
