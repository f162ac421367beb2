"""What all tables of edgetl.toml have in common."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A table: frozen, without unknown keys, its attributes' docstrings as descriptions.

    TOML knows nan and inf; no limit means anything with them, and a comparison with nan fails nothing.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)
