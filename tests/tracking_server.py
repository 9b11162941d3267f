"""An MLflow server for tests, and what runs have told it."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.tracking.events import EXPERIMENT
from tests.s3.servers import wait_for


@contextmanager
def tracking_server(home: Path, host: str, port: int) -> Iterator[str]:
    """A server in a process of its own that keeps what it is told in `home`; its address."""
    place = ["--backend-store-uri", f"sqlite:///{home}/mlflow.db", "--artifacts-destination", str(home / "files")]
    command = [sys.executable, "-m", "mlflow", "server", "--host", host, "--port", str(port), "--workers", "1"]
    with (home / "server.log").open("w") as log:
        process = subprocess.Popen([*command, *place], stdout=log, stderr=log)
        try:
            wait_for(f"http://{host}:{port}/health", process)
            yield f"http://{host}:{port}"
        finally:
            process.terminate()
            process.wait()


def curves(address: str, stage: str) -> list[list[int]]:
    """The steps at which each run of a stage told its loss, in the order of the runs."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(address)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is None:
        return []
    of_stage, order = f"tags.stage = '{stage}'", ["attributes.start_time"]
    found = client.search_runs([experiment.experiment_id], of_stage, order_by=order)
    return [sorted(point.step for point in client.get_metric_history(run.info.run_id, "loss")) for run in found]
