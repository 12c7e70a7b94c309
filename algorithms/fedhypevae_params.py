"""Parameters of FedHypeVAE. The paper leaves sizes, weights and the training of the meta-code open; what is chosen is said here."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from fedsim.methods.dp_sgd import DPSGDParams

PAPER_FORM: dict[str, Any] = {
    "latent": 32,
    "code": 16,
    "code_scale": 1.0,
    "hyper_hidden": 64,
    "encoder": "trained",
    "encoder_hidden": (128,),
    "decoder_hidden": (128,),
    "prior": "diagonal",
    "beta": 1.0,
    "kernel": 0.1,
    "rounds": 200,
    "clip": 1.0,
    "learning_rate": 0.03,
    "expected_batch": 10,
    "follow_signal": False,
    "precondition": 0.0,
    "noised": "shared",
}
"""What ``form: paper`` changes of the defaults; sizes and rates are ours, since the paper gives none."""


class FedHypeVAEParams(DPSGDParams):
    """Parameters of FedHypeVAE.

    Attributes:
        form: ``paper``, its literal form: encoder and decoder are MLPs, the hypernetwork, too; a round at a client is ``local_steps`` steps
            on encoder and code, then one gradient by the hypernetwork, clipped for the client as a whole; the MMD is a minibatch's. It has
            defaults of its own (``PAPER_FORM``), no coordinates, codes that stay at their clients, no ``sample_rate``, and counts clients
            in ``expected_batch``. ``default``: one DP-SGD step a round, clipped for each example.
        local_steps, batch_size: of the paper's form: steps of a client in a round, and rows of a step, drawn with replacement.
        hyper_hidden: width of the hypernetwork's hidden layer; 0: scales, shifts and prior are linear in the code.
        latent: dimension of z.
        code: dimension of the client code v; 0: no hypernetwork, one decoder and prior for all clients.
        code_scale: factor on v before it enters the hypernetwork: how far clients can differ.
        encoder: of z. ``posterior``: the exact posterior of a decoder without hidden layer, given codes and shared parameters: nothing to
            train, so no privacy cost and no noise. ``corrected``: a trained network, private to its client, corrects the exact posterior,
            from zero on. ``trained``: such a network from random weights is all of the encoder, whatever the decoder is.
        encoder_hidden: widths of the trained encoder's hidden layers.
        decoder_hidden: widths of the decoder's; none means a prototype per class plus a linear map of z.
        prior: conditional on label and code; ``full``: with a full covariance; ``diagonal``: one variance for every dimension of z.
            ``standard``: N(0, I).
        observation: ``shared``, one standard deviation for every feature and client; ``modulated``, times the decoder's row scales.
        beta: weight of KL(q || p(z | y, v)).
        kernel: weight of the per-example kernel score (the MMD alignment).
        lipschitz: weight of the squared Jacobian norm of the hypernetwork (on shared parameters alone, free of privacy cost).
        initial_variance: of the likelihood times the embedding's dimension, before it is learned.
        latent_share: norm of z's part of the decoder gradient relative to the prototypes' inside the joint clip.
        synthesis: ``neutral`` decodes one meta-code, ``mixture`` several, ``client`` for every row a client's own code at random.
        meta_codes: how many codes a mixture has.
        meta_steps: Adam steps that fit the meta-codes to the clients' generators.
    """

    form: Literal["default", "paper"] = "default"
    local_steps: int = Field(5, ge=1)
    batch_size: int = Field(64, ge=2)
    hyper_hidden: int = Field(0, ge=0)
    latent: int = Field(24, ge=1)
    code: int = Field(4, ge=0)
    code_scale: float = Field(0.3, gt=0)
    encoder: Literal["corrected", "trained", "posterior"] = "posterior"
    encoder_hidden: tuple[int, ...] = ()
    decoder_hidden: tuple[int, ...] = ()
    prior: Literal["full", "diagonal", "standard"] = "full"
    observation: Literal["shared", "modulated"] = "shared"
    beta: float = Field(0.5, ge=0)
    kernel: float = Field(0.005, ge=0)
    lipschitz: float = Field(1e-4, ge=0)
    initial_variance: float = Field(0.5, gt=0)
    latent_share: float = Field(1.0, gt=0)
    synthesis: Literal["neutral", "mixture", "client"] = "neutral"
    meta_codes: int = Field(3, ge=1)
    meta_steps: int = Field(50, ge=0)
    rounds: int = Field(100, ge=1)
    sample_rate: float = Field(0.2, gt=0, le=1)
    clip: float = Field(0.5, gt=0)
    learning_rate: float = Field(0.16, gt=0)
    local_learning_rate: float = Field(0.003, ge=0)
    decay: float = Field(0.3, gt=0, le=1)
    average_from: float = Field(0.7, ge=0, lt=1)
    follow_signal: bool = True
    precondition: float = Field(0.15, ge=0, lt=1)

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_form(cls, given: Any) -> Any:
        return PAPER_FORM | given if isinstance(given, dict) and given.get("form") == "paper" else given

    @model_validator(mode="after")
    def _parts_that_fit(self) -> FedHypeVAEParams:
        if self.form == "paper" and (self.encoder != "trained" or self.precondition):
            raise ValueError("form: paper has encoder: trained and precondition: 0; leave both out, or give form: default")
        if self.decoder_hidden and self.encoder != "trained":
            raise ValueError("decoder_hidden is not empty; give encoder: trained, any other needs a decoder without hidden layers")
        return self
