"""What KubeRay's RayJob accepts: fields and types of `ray.io/v1`, KubeRay 1.6 and 1.7, without those left out here.

Closed: a field that is misspelt, or that stands a level too high, is refused, where a cluster would drop it without a
word. Pod templates are Kubernetes' own, in the strict schemas of kubernetes-validate.
"""

from typing import Annotated, Any, Literal

import kubernetes_validate
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

KUBERNETES = "1.34"
"""The version whose schemas a pod template must meet."""
Count = Annotated[int, Field(ge=0)]


class Closed(BaseModel):
    """Only the fields that are named, of just these types."""

    model_config = ConfigDict(extra="forbid", strict=True)


def pod_template(template: dict[str, Any]) -> dict[str, Any]:
    """The template, if Kubernetes takes it; kubernetes_validate.ValidationError otherwise."""
    core = {"apiVersion": "v1", "kind": "PodTemplate", "template": template}
    kubernetes_validate.validate(core, KUBERNETES, strict=True)
    return template


Template = Annotated[dict[str, Any], AfterValidator(pod_template)]


class Head(Closed):
    """`headGroupSpec`."""

    rayStartParams: dict[str, str] = {}
    template: Template


class Workers(Head):
    """One of `workerGroupSpecs`."""

    groupName: str
    replicas: Count
    minReplicas: Count
    maxReplicas: Count


class Authentication(Closed):
    """`authOptions`."""

    mode: Literal["disabled", "token"]


class RayClusterSpec(Closed):
    """`spec` of a RayCluster, and `rayClusterSpec` of a RayJob."""

    rayVersion: str
    authOptions: Authentication
    headGroupSpec: Head
    workerGroupSpecs: list[Workers]


class Submitter(Closed):
    """`submitterConfig`."""

    backoffLimit: Count


class RayJobSpec(Closed):
    """`spec` of a RayJob."""

    entrypoint: str
    backoffLimit: Count
    submitterConfig: Submitter
    shutdownAfterJobFinishes: bool
    ttlSecondsAfterFinished: Count
    rayClusterSpec: RayClusterSpec


class Metadata(Closed):
    """`metadata`."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=47)]


class RayJob(Closed):
    """A manifest of one RayJob."""

    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayJob"]
    metadata: Metadata
    spec: RayJobSpec

    @property
    def cluster(self) -> RayClusterSpec:
        """The cluster that the job makes."""
        return self.spec.rayClusterSpec

    @property
    def pods(self) -> list[dict[str, Any]]:
        """The `spec` of each kind of pod, the head's first."""
        groups = [self.cluster.headGroupSpec, *self.cluster.workerGroupSpecs]
        return [group.template["spec"] for group in groups]
