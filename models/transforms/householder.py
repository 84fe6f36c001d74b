"""A learned rotation of vectors."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.contracts import Bijection


class Householder(Bijection):
    """z = H_1 ... H_K x, H_k = I - 2 v_k v_k^T / |v_k|^2, over vectors [B, D]: orthogonal, log |det| = 0.

    Tomczak & Welling 2016 (arXiv:1611.09630); Meng et al. 2020 (arXiv:2003.01941, sec. 4.2). In two products with V and a
    triangular solve: the product is I - V T V^T with T^-1 = (strictly upper part of V^T V) + diag(|v_k|^2) / 2
    (Joffrain et al. 2006). The v_k start as draws of a normal, of any length.
    """

    def __init__(self, dim: int, num_reflections: int):
        super().__init__()
        if num_reflections < 1:
            raise ValueError(f"num_reflections must be at least 1; got {num_reflections}")
        self.vectors = nn.Parameter(torch.randn(dim, num_reflections))

    def _apply_to(self, x: Tensor, transposed: bool) -> Tensor:
        gram = self.vectors.T @ self.vectors
        core = gram.triu(1) + torch.diag(gram.diagonal() / 2)
        core = core.T if transposed else core
        h = torch.linalg.solve_triangular(core, (x @ self.vectors).T, upper=not transposed)
        return x - h.T @ self.vectors.T

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._apply_to(x, transposed=False), x.new_zeros(len(x))

    def inverse_and_log_det(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._apply_to(z, transposed=True), z.new_zeros(len(z))
