"""Artifacts that several artifacts of one stage have in common, such as a teacher's vectors: written once.

They are artifacts like those of stages, with a key, a manifest and a lease, and the manifest of each artifact that
used one names it under `shared`, so that garbage collection keeps what is needed. They are no stages of the plan: it
would have to say for each whether it is needed, and most runs find them there.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from pipeline.artifacts.leases import Lease
from pipeline.artifacts.manifests import Damaged
from pipeline.artifacts.store import Artifact, Attempt, Store
from pipeline.planning.closure import code_parts
from pipeline.planning.plan import key_of
from stages.contract.context import StageError


@dataclass
class SharedArtifact:
    """See `stages.contract.context.Shared`."""

    store: Store
    module: str
    facts: Mapping[str, Any]
    found: Artifact | None
    output: Attempt | None = None
    lease: Lease | None = None

    def commit(self) -> Artifact:
        """The artifact: what was found, or what was written, which from here on exists.

        Raises StageError where the code that its key tells has changed since.
        """
        if self.found is None:
            assert self.output is not None
            if code_parts(self.module) != self.facts["parts"]["code"]:
                self.store.discard(self.output)
                raise StageError(f"{self.module} or what it imports changed meanwhile, so what was made is not kept")
            self.found = self.store.commit(self.output, self.facts, replace=True, lease=self.lease)
            self.output = None
        return self.found


@dataclass
class SharedArtifacts:
    """`Context.shared` of one stage of one run.

    Attributes:
        common: parts of every key that follow from the run's configuration: the precision that models compute in.
        facts: what every manifest tells besides its parts and inputs.
        announce: called with name and key before anything is used, so that the run's record protects it.
        used: name → artifacts that were asked for.
    """

    store: Store
    inputs: Mapping[str, Artifact]
    common: Mapping[str, Any]
    facts: Mapping[str, Any]
    say: Callable[[str], None]
    announce: Callable[[str, str], None] = lambda name, key: None
    used: list[SharedArtifact] = field(default_factory=list)

    @property
    def lost(self) -> bool:
        """Whether another run took one of the leases over."""
        return any(one.lease and one.lease.lost for one in self.used)

    def find(self, name: str, key: str) -> Artifact | None:
        """The artifact if it is there and whole."""
        if not self.store.has(name, key):
            return None
        try:
            artifact = self.store.artifact(name, key)
            artifact.files()
        except Damaged as error:
            self.say(f"warning: {name} is made again: {error}")
            return None
        return artifact

    def references(self) -> list[dict[str, str]]:
        """How a manifest names what was used."""
        found = [one.found for one in self.used if one.found]
        return [{"stage": one.stage, "key": one.key, "attempt": one.attempt} for one in found]

    @contextmanager
    def __call__(
        self, name: str, module: str, inputs: Sequence[str], params: Mapping[str, Any]
    ) -> Iterator[SharedArtifact]:
        """See `stages.contract.context.Share`."""
        parts = {
            "stage": name,
            "code": code_parts(module),
            "params": {**params, **self.common},
            "inputs": {of: self.inputs[of].key for of in inputs},
        }
        key = key_of(parts)
        made_from = {of: {"key": self.inputs[of].key, "attempt": self.inputs[of].attempt} for of in inputs}
        facts = {**self.facts, "parts": parts, "inputs": made_from, "metrics": {}}
        self.announce(name, key)
        with ExitStack() as held:
            lease = held.enter_context(self.store.locked(name, key, self.say))
            found = self.find(name, key)
            if found and found.manifest["inputs"] != made_from:  # an input was written anew since
                found = None
            shared = SharedArtifact(self.store, module, facts, found)
            if found:
                held.close()  # nothing is computed, so nobody has to wait; the run's record protects what was found
            else:
                attempts = {of: entry["attempt"] for of, entry in made_from.items()}
                shared.output, shared.lease = self.store.begin(name, key, inputs=attempts), lease
            self.used.append(shared)
            yield shared
