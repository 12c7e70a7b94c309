"""FedHypeVAE, warm: class moments first, in the plan and ledger; they start decoder and prior, which DP-SGD then refines."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator
from torch import Tensor

from algorithms.fedhypevae import FedHypeVAE
from algorithms.fedhypevae_params import FedHypeVAEParams
from algorithms.warm_start import RELEASED, WarmStart
from fedsim.methods.messages import Server, Tensors
from fedsim.methods.one_shot import statistic_phase
from fedsim.methods.phase import Phase
from fedsim.methods.registry import register
from fedsim.privacy.plan import Unit


class FedHypeVAEWarmParams(FedHypeVAEParams):
    """Parameters of FedHypeVAE with a warm start; the encoder is the exact posterior, which has nothing to train and costs nothing.

    Attributes:
        latent: most directions of the shared covariance that are kept.
        sgd_share: DP-SGD's share of the budget, in units of 1 / sigma^2; the rest is the moments'.
    """

    latent: int = Field(64, ge=1)
    encoder: Literal["trained", "posterior"] = "posterior"
    class_maps: bool = True
    rounds: int = Field(20, ge=1)
    sample_rate: float = Field(0.1, gt=0, le=1)
    learning_rate: float = Field(0.003, gt=0)
    sgd_share: float = Field(0.1, gt=0, lt=1)

    @model_validator(mode="after")
    def _linear_decoder(self) -> FedHypeVAEWarmParams:
        if self.decoder_hidden:
            raise ValueError("decoder_hidden is not empty; a warm start needs a decoder without hidden layers")
        return self


@register("fedhypevae-warm")
class FedHypeVAEWarm(FedHypeVAE):
    """One phase for each statistic of the warm start, then FedHypeVAE's DP-SGD."""

    Params: ClassVar[type[FedHypeVAEWarmParams]] = FedHypeVAEWarmParams
    units: ClassVar[tuple[Unit, ...]] = ("example", "group")
    moments: ClassVar[str] = "moments"

    def warm_start(self) -> WarmStart:
        """What comes before DP-SGD."""
        p: Any = self.params
        return WarmStart(self.moments, self.task.classes, self.task.clients, p.latent, p.code_scale, p.class_maps)

    def phases(self) -> tuple[Phase, ...]:
        """The warm start's statistics, then DP-SGD."""
        (sgd,), share = super().phases(), self.params.sgd_share
        first = (statistic_phase(each, self.clip(), self.task, self.released) for each in self.warm_start().statistics(1 - share))
        return (*first, sgd.taking(share))

    def released(self, server: Server) -> Tensors:
        """What clients are told of the warm start's releases."""
        return {name: value for name, value in server.tensors.items() if name in RELEASED}

    def label_counts(self, server: Server) -> Tensor:
        """Those of the moments."""
        return server.tensors["counts"]
