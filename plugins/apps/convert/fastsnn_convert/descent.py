"""Adam on a few small tensors: torch's own update, without `torch.optim.Adam`.

Making one of torch's optimizers imports torch's compiler and sympy: two to five seconds, a tenth of the conversion of
a small model. The update itself, `torch.optim.adam.adam`, does not.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim.adam import adam


class Descent:
    """Adam (Kingma & Ba, arXiv 1412.6980; β = 0.9, 0.999, ε = 1e-8) on leaves that require gradients, of any shape."""

    def __init__(self, tensors: Sequence[Tensor], rate: float) -> None:
        """`rate` is the length of a step; tensors that require no gradient stay as they are."""
        self.tensors = [t for t in tensors if t.requires_grad]
        self.rate = rate
        self.means = [torch.zeros_like(t) for t in self.tensors]
        self.squares = [torch.zeros_like(t) for t in self.tensors]
        self.steps = [torch.zeros(()) for _ in self.tensors]

    def step(self, error: Tensor) -> None:
        """One step down the gradient of ``error []``."""
        gradients = list(torch.autograd.grad(error, self.tensors))
        with torch.no_grad():
            adam(
                self.tensors,
                gradients,
                self.means,
                self.squares,
                [],
                self.steps,
                foreach=False,
                amsgrad=False,
                beta1=0.9,
                beta2=0.999,
                lr=self.rate,
                weight_decay=0.0,
                eps=1e-8,
                maximize=False,
            )
