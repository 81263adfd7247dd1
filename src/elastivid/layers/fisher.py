"""Fisher vectors: any number of local descriptors of a clip as one vector of fixed length.

    z       = (descriptor - centre) basis, whitened | 3 place                        where a part lies counts too
    q       = how likely each of K Gaussians made z
    vector  = [ sum q (z - mean) / std | sum q ((z - mean)^2 / std^2 - 1) ]          by Gaussian
    vector  = sign(vector) sqrt|vector|, to unit length by kind of descriptor

It says how the descriptors of this clip differ from those of all clips, which a linear layer reads far better than
counts or means (Perronnin et al., ECCV 2010). Neither the basis nor the Gaussians need labels.

Costs: M descriptors times (size + 4K) dims products a kind, a few million for a clip.

Letters: B clips, M descriptors of a clip, C kinds, S their size, d dims + 3, K Gaussians.
"""

from __future__ import annotations

import math
import warnings

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elastivid.core.errors import MissingExtraError

PLACE_WEIGHT = 3.0  # whitened descriptors have a deviation of 1, places of about 0.3
LEAST_VARIANCE = 1e-3
ROUNDS, TOLERANCE = 200, 1e-2  # of expectation and maximisation: at most so many, while likelihood grows by more


class FisherVectors(nn.Module):
    """See the module's text. What it returns means nothing before `fit`.

    Args:
        kinds: C, kinds of descriptors; each has a basis and Gaussians of its own.
        size: S, numbers of a descriptor.
        words: K, Gaussians.
        dims: what descriptors are reduced to before places are added.

    Raises:
        ValueError: there are no words, or more dims than numbers.
    """

    centre: Tensor
    basis: Tensor
    weight: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, kinds: int, size: int, words: int, dims: int = 24) -> None:
        super().__init__()
        if words < 1 or not 1 <= dims <= size:
            raise ValueError(f"words must be 1 or more and dims 1 to size {size}, got {words} and {dims}")
        self.dims, self.words, width = dims, words, dims + 3
        self.register_buffer("centre", torch.zeros(kinds, size))
        self.register_buffer("basis", torch.zeros(kinds, size, dims))
        self.register_buffer("weight", torch.full((kinds, words), 1 / words))
        self.register_buffer("mean", torch.zeros(kinds, words, width))
        self.register_buffer("std", torch.ones(kinds, words, width))

    @property
    def length(self) -> int:
        """Numbers of a vector."""
        return 2 * self.mean.numel()

    @property
    def num_bytes(self) -> int:
        """Of basis and Gaussians."""
        return sum(buffer.numel() * buffer.element_size() for buffer in self.buffers())

    def macs(self, descriptors: int) -> int:
        """Products of `forward` on so many descriptors of a clip: the basis, likelihoods, and both sums."""
        kinds, size, dims = self.basis.shape
        return descriptors * kinds * (size * dims + 4 * self.words * (dims + 3))

    def forward(self, descriptors: Tensor, places: Tensor) -> Tensor:
        """Vectors (B, 2 C K d) of descriptors (B, M, C, S) at places (B, M, 3) in [-0.5, 0.5]."""
        z = self._reduced(descriptors, places)  # (B, C, M, d)
        precision = self.std**-2  # (C, K, d)
        constant = self.weight.log() - self.std.log().sum(-1) - (self.mean**2 * precision).sum(-1) / 2  # (C, K)
        distance = (z**2) @ precision.mT / -2 + z @ (self.mean * precision).mT  # (B, C, M, K)
        q = (distance + constant[:, None]).softmax(dim=-1)  # (B, C, M, K)
        total = q.sum(dim=2).unsqueeze(-1)  # (B, C, K, 1)
        first, second = q.mT @ z, q.mT @ z**2  # (B, C, K, d) each
        up = (first - total * self.mean) / self.std
        across = (second - 2 * first * self.mean + total * self.mean**2) * precision - total
        share = self.weight.sqrt().unsqueeze(-1)  # (C, K, 1)
        vector = torch.cat([up / share, across / (math.sqrt(2) * share)], dim=-1).flatten(2)  # (B, C, 2Kd)
        return F.normalize(vector.sign() * vector.abs().sqrt(), dim=-1).flatten(1)  # (B, C*2Kd)

    @torch.no_grad()
    def fit(self, descriptors: Tensor, places: Tensor, seed: int = 0) -> None:
        """Find basis and Gaussians for a sample of descriptors of many clips.

        Args:
            descriptors: (N, C, S).
            places: (N, 3).
            seed: of the Gaussians' start.

        Raises:
            MissingExtraError: scikit-learn is not installed.
            ValueError: there are fewer descriptors than Gaussians or than `dims`.
        """
        try:
            from sklearn.exceptions import ConvergenceWarning
            from sklearn.mixture import GaussianMixture
        except ImportError as error:
            raise MissingExtraError("scikit-learn", "train") from error
        count = len(descriptors)
        if count < max(self.words, self.dims):
            raise ValueError(
                f"{self.words} words of {self.dims} dims need at least {max(self.words, self.dims)} descriptors, got "
                f"{count}; use fewer words or more clips"
            )
        for kind, part in enumerate(descriptors.unbind(dim=1)):  # (N, S): one at a time, they are many
            part = part.double()
            self.centre[kind] = part.mean(dim=0)
            part = part - part.mean(dim=0)
            values, vectors = torch.linalg.eigh(part.T @ part / count)  # ascending
            spread = values[-self.dims :].clamp(min=LEAST_VARIANCE * float(values[-1].clamp(min=1e-12))).sqrt()
            self.basis[kind] = (vectors[:, -self.dims :] / spread).flip(1)
        z = self._reduced(descriptors[None], places[None])[0]  # (C, N, d)
        for kind, part in enumerate(z.cpu().numpy()):
            mixture = GaussianMixture(
                self.words, covariance_type="diag", reg_covar=LEAST_VARIANCE, max_iter=ROUNDS, tol=TOLERANCE,
                init_params="k-means++", random_state=seed,
            )  # fmt: skip
            with warnings.catch_warnings():  # the rounds are as many as are worth while
                warnings.simplefilter("ignore", ConvergenceWarning)
                mixture.fit(part)
            self.weight[kind] = torch.from_numpy(mixture.weights_)
            self.mean[kind] = torch.from_numpy(mixture.means_)
            self.std[kind] = torch.from_numpy(mixture.covariances_).sqrt()

    def _reduced(self, descriptors: Tensor, places: Tensor) -> Tensor:
        """Whitened descriptors beside their places, (B, C, M, d)."""
        z = (descriptors - self.centre).transpose(1, 2).to(self.basis.dtype) @ self.basis  # (B, C, M, dims)
        where = PLACE_WEIGHT * places[:, None].expand(-1, z.shape[1], -1, -1).to(z.dtype)  # (B, C, M, 3)
        return torch.cat([z, where], dim=-1)
