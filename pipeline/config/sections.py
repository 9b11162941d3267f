"""The configuration of a run: one closed, frozen tree whose sections belong to their stages.

Each section's class stands in the stage's module, beside the code that reads it; here they only meet.
"""

from pydantic import Field

from stages.backbone import Params as Backbone
from stages.contract.params import Cluster, Section, knob
from stages.distill import Params as Distillation
from stages.distill import Student
from stages.evaluate import Params as Evaluate
from stages.features import Params as Features
from stages.index import Params as Index
from stages.ingest import OwnData
from stages.ingest import Params as Data
from stages.train import Params as Train


class Distill(Distillation):
    """The section `distill`, with the section that has a stage of its own."""

    data: OwnData = OwnData()


class Config(Section):
    """All settings of a run. Relative paths start from the current directory."""

    store: str = knob(".puma/store", min_length=1, description="directory (or s3:// prefix) of the artifacts")
    store_endpoint: str = knob("", description="S3 server of the store; empty is AWS_ENDPOINT_URL(_S3), else AWS")
    tracking_uri: str = knob("", description="MLflow; empty is MLFLOW_TRACKING_URI, else sqlite below .puma/")
    seed: int = Field(0, ge=0, le=2**32 - 1, description="of every random choice")
    data: Data = Data()
    backbone: Backbone = Backbone()
    features: Features = Features()
    student: Student = Student()
    distill: Distill = Distill()
    train: Train = Train()
    index: Index = Index()
    evaluate: Evaluate = Evaluate()
    cluster: Cluster = Cluster()
