"""The whole route, and the parts of it that bring-your-own models take."""

from edgetl.pipeline.build import STAGES, Outcome, build, judge
from edgetl.pipeline.session import Reporter, Silent

__all__ = ["STAGES", "Outcome", "Reporter", "Silent", "build", "judge"]
