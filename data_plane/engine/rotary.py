"""Rotary position embedding (Su et al. 2021, arXiv:2104.09864) in Hugging Face's half-split order."""

import torch

__all__ = ["Rotary"]


class Rotary:
    """Turns query and key vectors by angles proportional to their positions.

    Args:
        head_dim: size of one head's vector; even.
        theta: base of the geometric progression of wavelengths.
    """

    def __init__(self, *, head_dim: int, theta: float) -> None:
        exponents = torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim
        self._frequencies = 1.0 / (theta**exponents)
        self._half = head_dim // 2

    def angles(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return cosines and signed sines, each [rows, 1, head_dim], of ``positions`` [rows] (int64)."""
        half = positions.float()[:, None] * self._frequencies
        sine = half.sin()
        return torch.cat((half.cos(),) * 2, dim=-1)[:, None], torch.cat((-sine, sine), dim=-1)[:, None]

    def apply(self, vectors: torch.Tensor, cosine: torch.Tensor, signed_sine: torch.Tensor) -> torch.Tensor:
        """Return ``vectors`` [rows, heads, head_dim] turned by the angles of their rows."""
        return torch.addcmul(vectors * cosine, vectors.roll(self._half, -1), signed_sine)
