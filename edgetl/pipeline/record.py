"""Everything that a build found out, in one value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from edgetl.data.dataset import Dataset
from edgetl.pipeline import transfer
from edgetl.pipeline.choice import Decision
from edgetl.pipeline.reference import Reference
from edgetl.pipeline.session import Session
from edgetl.pipeline.timing import Timings
from edgetl.runtime.decision import Decision as Answering
from edgetl.store import Artifact


@dataclass(frozen=True, kw_only=True)
class Record:
    """A build before it is published."""

    session: Session
    data: Artifact
    dataset: Dataset
    checkpoint: Artifact
    history: tuple[dict[str, Any], ...]
    """Per phase, :class:`edgetl.finetune.loop.PhaseResult` as JSON."""
    exported: Artifact
    statistics: Artifact | None
    """None where no engine is int8."""
    graphs: dict[str, Artifact]
    """Candidate's name → the graph that its engine was compiled from."""
    golden: Artifact
    reference: Reference
    decision: Answering
    """How outputs become answers."""
    judged: transfer.Comparison | None
    """Whether transfer helped; None where it was not judged."""
    timings: Timings
    decisions: tuple[Decision, ...]

    @property
    def name(self) -> str:
        """Of the bundle's folder."""
        return f"{self.session.config.project.name}-{self.session.config.project.version}"
