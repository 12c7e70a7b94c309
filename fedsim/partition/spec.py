"""The ``partition`` mapping of a grid: a scheme, and beside it the parameters that are the scheme's own."""

from __future__ import annotations

from pydantic import Field, field_validator

from fedsim.errors import nearest
from fedsim.partition.schemes import SCHEMES
from fedsim.tagged import Tagged


class PartitionSpec(Tagged):
    """How rows are divided among clients.

    Attributes:
        scheme: one of ``SCHEMES``.
        min_size: the fewest rows that a client may hold; of groups that stay together the fewest groups.
        together: a column whose rows of one value stay with one client, such as a patient's; a grid's unit, where it is such a column.
    """

    kinds = SCHEMES

    scheme: str = "dirichlet"
    min_size: int = Field(default=2, ge=1, strict=True)
    together: str | None = Field(default=None, min_length=1)

    @field_validator("scheme")
    @classmethod
    def _known_scheme(cls, scheme: str) -> str:
        if scheme not in SCHEMES:
            raise ValueError(f"unknown scheme '{scheme}'; {nearest(scheme, SCHEMES)}")
        return scheme

    def refusal(self, name: str, owners: list[str]) -> str:
        """See :class:`Tagged`."""
        return f"scheme '{self.scheme}' takes no {name}; remove it or give scheme: {' or '.join(owners)}"

    @property
    def kind(self) -> str:
        """The scheme."""
        return self.scheme

    @property
    def things(self) -> str:
        """What is divided, in words."""
        return "rows" if self.together is None else f"values of {self.together}"

    @property
    def uses_alpha(self) -> bool:
        """Whether ``alpha`` can change the partition."""
        return SCHEMES[self.scheme].uses_alpha
