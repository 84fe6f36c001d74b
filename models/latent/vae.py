"""The variational autoencoder with one group of latent variables."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.contracts import Conditional, DataSpec, GenerativeModel, Kind, Likelihood, Score, check_batch
from models.distributions.bases import StandardNormal
from models.distributions.normal import DiagonalNormal
from models.latent.data_bias import DataBias
from models.latent.nets import Encoder
from models.latent.posteriors import DiagonalPosterior
from models.likelihoods.bernoulli import Bernoulli


def kl_from_standard(q: DiagonalNormal) -> Tensor:
    """KL(q || N(0, I)) = sum_d (mean_d^2 + scale_d^2 - 1) / 2 - log scale_d, in nats [B]."""
    return (0.5 * (q.mean.square() + torch.exp(2 * q.log_scale) - 1) - q.log_scale).sum(1)


class VAE(GenerativeModel):
    """log p(x) >= E_q(z|x) [log p(x|z) + log p(z) - log q(z|x)] (Kingma & Welling 2014, arXiv:1312.6114, eq. 2).

    A score is one draw of z. Its terms are "data" = log p(x|z) and "kl" = log p(z) - log q(z|x), and its kind is WEIGHT:
    exp(nats) is an importance weight, E[exp nats] = p(x). With ``analytic_kl`` the second term is -KL(q || p) in
    closed form (lower variance, eq. 7) and the kind is LOWER: such nats must not be importance averaged.

    Factories: ``encoder(spec, labels)``, ``posterior(latent_dim, context_dim)``, ``prior(shape)``, ``decoder(inputs, outputs)``.
    ``data_bias`` starts Bernoulli logits at the data's mean image (``DataBias``).
    With ``conditional`` the encoder and the decoder also see the label, p(x|y) = E_p(z) p(x|z, y) (Kingma et al. 2014,
    arXiv:1406.5298, M2 with observed labels).

    Raises ValueError: an analytic KL without diagonal posterior and standard prior; a data bias for another head than
    Bernoulli; conditional without classes or labels.
    """

    def __init__(
        self,
        spec: DataSpec,
        latent_dim: int,
        encoder: Callable[[DataSpec, int], Encoder],
        decoder: Callable[[int, Sequence[int]], nn.Module],
        posterior: Callable[[int, int], Conditional],
        prior: Callable[[Sequence[int]], Conditional],
        likelihood: Likelihood,
        analytic_kl: bool,
        data_bias: bool,
        conditional: bool,
    ):
        super().__init__()
        if data_bias and not isinstance(likelihood, Bernoulli):
            raise ValueError("data_bias=true sets logits from the data mean and needs likelihood=bernoulli")
        if conditional and spec.classes is None:
            raise ValueError("conditional=true needs data with labels; this data set has none")
        self.spec, self.likelihood = spec, likelihood
        self.labels = spec.classes if conditional else 0
        self.encoder = encoder(spec, self.labels)
        self.posterior = posterior(latent_dim, self.encoder.features)
        self.prior = prior([latent_dim])
        self.decoder = decoder(latent_dim + self.labels, [likelihood.param_channels(), *spec.shape[1:]])
        self.data_bias = DataBias(spec) if data_bias else None
        self.analytic_kl = analytic_kl
        if analytic_kl and not (isinstance(self.posterior, DiagonalPosterior) and isinstance(self.prior, StandardNormal)):
            raise ValueError("analytic_kl=true needs posterior=diagonal and prior=standard; set model.analytic_kl=false")

    def score(self, x: Tensor, y: Tensor | None = None) -> Score:
        check_batch(x, self.spec)
        labels = self._one_hot(y)
        return self._one_draw(x, labels, self.encoder(x, labels))

    def log_weights(self, x: Tensor, y: Tensor | None, k: int) -> Score:
        """``k`` independent scores of each example, nats and terms [B, k]; the encoder runs once."""
        check_batch(x, self.spec)
        labels = self._one_hot(y)
        x, labels, context = (
            None if t is None else t.repeat_interleave(k, 0) for t in (x, labels, self.encoder(x, labels))
        )
        score = self._one_draw(x, labels, context)
        return Score(score.nats.view(-1, k), score.kind, {name: term.view(-1, k) for name, term in score.terms.items()})

    def sample(self, n: int, y: Tensor | None = None, temperature: float = 1.0) -> Tensor:
        """Draws from p(x|z), z ~ p(z); ``temperature`` scales the prior's standard deviation."""
        z = self.prior().rsample(n, temperature)
        return self.likelihood.sample(self._head_params(z, self._one_hot(y)))

    def encode(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """The z [B, D] to which the mean of the posterior's Gaussian goes."""
        check_batch(x, self.spec)
        return self.posterior(self.encoder(x, self._one_hot(y))).rsample(x.shape[0], temperature=0.0)

    def decode(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        """E[x|z] in levels, float [B, C, H, W]."""
        return self.likelihood.mean(self._head_params(z, self._one_hot(y)))

    def reconstruct(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """``decode(encode(x))``."""
        return self.decode(self.encode(x, y), y)

    def _one_draw(self, x: Tensor, labels: Tensor | None, context: Tensor) -> Score:
        q, p = self.posterior(context), self.prior()
        if self.analytic_kl:
            z = q.rsample(x.shape[0])
            kl, kind = -kl_from_standard(q), Kind.LOWER
        else:
            z, log_q = q.rsample_and_log_prob(x.shape[0])
            kl, kind = p.log_prob(z) - log_q, Kind.WEIGHT
        if self.data_bias is not None:
            self.data_bias.observe(x)
        data = self.likelihood.log_prob(self._head_params(z, labels), x)
        return Score(data + kl, kind, {"data": data, "kl": kl})

    def _head_params(self, z: Tensor, labels: Tensor | None) -> Tensor:
        params = self.decoder(z if labels is None else torch.cat([z, labels], 1))
        return params if self.data_bias is None else self.data_bias(params)

    def _one_hot(self, y: Tensor | None) -> Tensor | None:
        if not self.labels:
            return None
        if y is None:
            raise ValueError("this model is class-conditional: give labels y")
        return F.one_hot(y, self.labels).to(next(self.parameters()).dtype)
