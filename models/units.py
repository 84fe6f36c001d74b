"""The only place where nats become bits."""

from math import log

_NATS_PER_BIT = log(2.0)


def bits(nats):
    """Nats to bits (numbers or tensors)."""
    return nats / _NATS_PER_BIT


def bits_per_dim(nats, dims: int):
    """A log-likelihood in nats [B] (larger is likelier) to bits per dimension (smaller is better)."""
    return -bits(nats) / dims
