"""What the numbers of an engine must keep to."""

from __future__ import annotations

from edgetl.config import Parity
from edgetl.parity.numeric import Tolerance
from edgetl.pipeline.proof import tolerance_of


def test_limits_of_the_numbers_are_the_users_where_there_are_some() -> None:
    own = Parity.model_validate({"tolerances": {"int8": {"sqnr_db": 12}, "fp32": {}}})
    assert tolerance_of(own, "int8") == Tolerance(sqnr_db=12.0)
    assert tolerance_of(own, "fp32") == Tolerance()
    assert tolerance_of(own, "fp16") == Tolerance(sqnr_db=30.0)
    assert tolerance_of(Parity(), "int8") is None
