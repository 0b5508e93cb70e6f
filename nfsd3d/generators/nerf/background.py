"""The learned background of a scene: a colour for every direction, by spherical harmonics and a small MLP."""

import torch
from torch import Tensor, nn

from nfsd3d.generators.nerf.field import mlp


class Background(nn.Module):
    """A trainable colour per direction: real spherical harmonics up to degree 3 as inputs of a small MLP.

    ``forward`` maps unit directions [N,3] to colours [N,3] in [0,1].
    """

    def __init__(self, hidden_width: int = 16) -> None:
        super().__init__()
        self.network = mlp(16, hidden_width, 1, 3)

    def forward(self, directions: Tensor) -> Tensor:
        """[N,3] colours in [0,1] for unit ``directions`` [N,3]."""
        return torch.sigmoid(self.network(spherical_harmonics(directions)))


def spherical_harmonics(directions: Tensor) -> Tensor:
    """[N,16] the real spherical harmonics of degrees 0 to 3, orthonormal on the sphere, at unit directions [N,3]."""
    x, y, z = directions.unbind(-1)
    xx, yy, zz = x * x, y * y, z * z
    return torch.stack(
        [
            torch.full_like(x, 0.28209479177387814),
            -0.48860251190291987 * y,
            0.48860251190291987 * z,
            -0.48860251190291987 * x,
            1.0925484305920792 * x * y,
            -1.0925484305920792 * y * z,
            0.31539156525252005 * (3 * zz - 1),
            -1.0925484305920792 * x * z,
            0.5462742152960396 * (xx - yy),
            -0.5900435899266435 * y * (3 * xx - yy),
            2.890611442640554 * x * y * z,
            -0.4570457994644658 * y * (5 * zz - 1),
            0.3731763325901154 * z * (5 * zz - 3),
            -0.4570457994644658 * x * (5 * zz - 1),
            1.445305721320277 * z * (xx - yy),
            -0.5900435899266435 * x * (xx - 3 * yy),
        ],
        dim=-1,
    )
