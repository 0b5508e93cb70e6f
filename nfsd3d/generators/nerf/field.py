"""The radiance field: density and albedo at every point, from a hash encoding, a small MLP and a density bias."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nfsd3d.device import move
from nfsd3d.generators.nerf.hashgrid.encoding import HashEncoding, hash_encoding
from nfsd3d.generators.nerf.hashgrid.spec import HashGridSpec
from nfsd3d.generators.nerf.points import EncodedPoints

# Corners of a tetrahedron: four evaluations give a central difference, instead of six.
TETRAHEDRON = ((1.0, 1.0, 1.0), (1.0, -1.0, -1.0), (-1.0, 1.0, -1.0), (-1.0, -1.0, 1.0))
# Density gradients (per world unit squared) far below this have no reliable direction: their normal goes to zero.
SMALLEST_GRADIENT = 1e-3
# Points that are evaluated together, without gradient.
POINTS_PER_CHUNK = 2**18


FusedNetwork = Callable[[Tensor, Tensor, Tensor], Tensor]
"""[N,O] of features [N,I] and the weights [H,I] and [O,H] of an MLP of one hidden layer."""


SpatialOrder = Callable[[Tensor], Tensor]
"""[N] int64 indices that sort positions [N,3] in the unit cube so that neighbours in space follow each other."""


@dataclass(frozen=True)
class FieldSample:
    """``density`` [N], at least 0, in 1/world unit; ``albedo`` [N,3] in [0,1].

    ``features`` [N,F] are the encoded positions, kept for :meth:`HashGridField.analytic_normals_of`.
    """

    density: Tensor
    albedo: Tensor
    features: Tensor | None = None


class HashGridField(nn.Module):
    """Density and albedo in the cube [-radius, radius]^3; outside it, the encoding of the nearest border point.

    The density is softplus(network + ``blob_scale`` (1 - |x| / ``blob_std``)). The second term starts the scene as a
    blob of ``blob_std`` world units at the origin (Magic3D, arXiv 2211.10440). The network has ``hidden_layers`` ReLU
    layers of ``hidden_width``, without biases. ``tensor_cores`` allows a fused kernel (``fused_network``) to round its
    factors to TF32. Positions are world units [N,3].
    """

    def __init__(
        self,
        spec: HashGridSpec,
        backend: str,
        *,
        radius: float,
        hidden_width: int,
        hidden_layers: int,
        blob_scale: float,
        blob_std: float,
        tensor_cores: bool = False,
    ) -> None:
        super().__init__()
        self.radius = radius
        self.blob_scale = blob_scale
        self.blob_std = blob_std
        self.encoding = hash_encoding(spec, backend)
        self.network = mlp(spec.width, hidden_width, hidden_layers, 4)
        self._fused = fused_network(backend, spec.width, hidden_width, hidden_layers, tensor_cores=tensor_cores)
        self._space_order = ordering(backend)
        self._uses_features = backend == "numba" and hidden_layers == 1

    def forward(
        self, positions: Tensor, *, encoded: EncodedPoints | None = None, keep_features: bool = False
    ) -> FieldSample:
        """Density and albedo at ``positions`` [N,3]; with their features for normals, if these can be kept.

        ``encoded``: their encoding, from :meth:`density_and_points` with the same parameters; not computed again.
        """
        points = self._encoded(positions) if encoded is None else self._trainable(encoded)
        raw = points.in_place(self._of_features(points.features))
        kept = points.features if keep_features and self._uses_features else None
        return FieldSample(self._density(positions, raw[:, 0]), torch.sigmoid(raw[:, 1:]), kept)

    def density(self, positions: Tensor) -> Tensor:
        """[N] density at ``positions`` [N,3]."""
        points = self._encoded(positions)
        return self._density(positions, points.in_place(self._of_features(points.features))[:, 0])

    @property
    def takes_encoded(self) -> bool:
        """Whether the points of :meth:`density_and_points` can be given to :meth:`forward`, by the backend."""
        return isinstance(self.encoding, HashEncoding) and self.encoding.has_table_gradient

    @torch.no_grad()
    def density_and_points(self, positions: Tensor) -> tuple[Tensor, EncodedPoints]:
        """[N] density at ``positions`` [N,3] without gradient, and the encoded points, for :meth:`forward`.

        Of all points only the features are in memory at the same time, not the network's hidden layers.
        """
        points = self._encoded(positions, in_space_order=True)
        raw = torch.cat([self._of_features(part)[:, :1] for part in points.features.split(POINTS_PER_CHUNK)])
        return self._density(positions, points.in_place(raw)[:, 0]), points

    def analytic_normals(self, positions: Tensor) -> Tensor:
        """[N,3] unit normals against the density's gradient; not differentiable."""
        if self._uses_features:
            with torch.no_grad():
                features = self.encoding(self._inside(positions))
                density = self._density(positions, self._of_features(features)[:, 0])
            return outward(self._density_gradient(positions, density, features))
        with torch.enable_grad():
            positions = positions.detach().requires_grad_()
            # Detached parameters: a kernel's backward pass computes the gradient of every input that requires one.
            frozen = {name: parameter.detach() for name, parameter in self.named_parameters()}
            sample: FieldSample = torch.func.functional_call(self, frozen, (positions,))
            (gradient,) = torch.autograd.grad(sample.density.sum(), positions)
        return outward(gradient)

    @torch.no_grad()
    def analytic_normals_of(self, points: Tensor, positions: Tensor, sample: FieldSample) -> Tensor:
        """[M,3] those at the ``points`` [M] of ``positions`` [N,3], indices, where there is a ``sample`` already."""
        chosen = positions.index_select(0, points)
        if sample.features is None:
            return self.analytic_normals(chosen)
        features = sample.features.T.index_select(1, points).T  # they are stored by columns
        return outward(self._density_gradient(chosen, sample.density.index_select(0, points), features))

    def finite_difference_normals(self, positions: Tensor, eps: float) -> Tensor:
        """[N,3] unit normals from finite differences over ``eps`` world units; differentiable."""
        offsets = move(torch.tensor(TETRAHEDRON, dtype=positions.dtype), positions.device)
        around = positions[None] + eps * offsets[:, None]
        density = self.density(around.reshape(-1, 3)).reshape(4, -1)
        return outward(torch.einsum("kn,kd->nd", density, offsets) / (4 * eps))

    @torch.no_grad()
    def _density_gradient(self, positions: Tensor, density: Tensor, features: Tensor) -> Tensor:
        """[N,3] the density's gradient, without a graph, where ``density`` [N] and ``features`` [N,F] are known."""
        from nfsd3d.generators.nerf.mlp_cpu import first_output_gradient

        assert isinstance(self.encoding, HashEncoding)
        hidden, output = self.network.parameters()
        to_features = first_output_gradient(features, hidden, output)
        unit = positions / (2 * self.radius) + 0.5
        to_unit = self.encoding.position_gradient(unit.clamp(0, 1), to_features)
        to_unit.masked_fill_((unit < 0) | (unit > 1), 0.0)  # beyond the border nothing changes
        to_blob = positions / positions.norm(dim=-1, keepdim=True).clamp(min=torch.finfo(positions.dtype).tiny)
        slope = to_unit / (2 * self.radius) - (self.blob_scale / self.blob_std) * to_blob
        return -torch.expm1(-density)[:, None] * slope  # the softplus's own: density = log(1 + exp(x))

    def _inside(self, positions: Tensor) -> Tensor:
        """[N,3] the positions in the unit cube, or the nearest points of its border."""
        inside = positions / (2 * self.radius) + 0.5
        return inside.clamp(0, 1) if inside.requires_grad else inside.clamp_(0, 1)

    def _encoded(self, positions: Tensor, *, in_space_order: bool = False) -> EncodedPoints:
        inside, order = self._inside(positions), None
        # In Morton order, neighbours share entries of the table, and its gradient needs fewer atomic additions. The
        # gradient with respect to positions has none.
        trained = torch.is_grad_enabled() and not inside.requires_grad
        if self._space_order is not None and (trained or in_space_order):
            order = self._space_order(inside)
            inside = inside.detach()[order]
        return EncodedPoints(inside, self.encoding(inside), order)

    def _trainable(self, points: EncodedPoints) -> EncodedPoints:
        """The same ``points``, their features differentiable with respect to the table."""
        assert isinstance(self.encoding, HashEncoding)
        return replace(points, features=self.encoding.trainable(points.inside, points.features))

    def _of_features(self, features: Tensor) -> Tensor:
        if self._fused is None:
            return self.network(features)
        hidden, output = self.network.parameters()
        return self._fused(features, hidden, output)

    def _density(self, positions: Tensor, raw: Tensor) -> Tensor:
        blob = self.blob_scale * (1 - positions.norm(dim=-1) / self.blob_std)
        return F.softplus(raw + blob)


def mlp(inputs: int, width: int, layers: int, outputs: int) -> nn.Sequential:
    """``layers`` ReLU layers of ``width``, without biases, and a linear output layer."""
    sizes = [inputs] + [width] * layers
    modules: list[nn.Module] = []
    for before, after in pairwise(sizes):
        modules += [nn.Linear(before, after, bias=False), nn.ReLU()]
    return nn.Sequential(*modules, nn.Linear(sizes[-1], outputs, bias=False))


def fused_network(backend: str, inputs: int, width: int, layers: int, *, tensor_cores: bool) -> FusedNetwork | None:
    """One function for such an ``mlp``, forward and backward; None if torch computes it layer by layer.

    It exists for a single hidden layer: for ``backend`` "numba", and for "triton" if it fits into registers. On a GPU
    without ``tensor_cores`` it takes longer than torch (8.0 and 5.7 ms for 4.1 million points on an H100), but a third
    of the memory.
    """
    if layers != 1:
        return None
    if backend == "numba":
        from nfsd3d.generators.nerf.mlp_cpu import perceptron as on_cpu

        return on_cpu
    if backend != "triton":
        return None
    from nfsd3d.generators.nerf.mlp_triton import fits, perceptron

    return partial(perceptron, tensor_cores=tensor_cores) if fits(inputs, width, tensor_cores=tensor_cores) else None


def ordering(backend: str) -> SpatialOrder | None:
    """The Morton order for ``backend`` "triton"; None for the others.

    It pays on a GPU, where thousands of points add to the table at the same time.
    """
    if backend != "triton":
        return None
    from nfsd3d.generators.nerf.morton_triton import space_order

    return space_order


def outward(gradient: Tensor) -> Tensor:
    """[N,3] unit vectors against ``gradient`` [N,3]; their length falls smoothly to zero where it vanishes."""
    length = (gradient.square().sum(-1, keepdim=True) + SMALLEST_GRADIENT**2).sqrt()
    return -gradient / length
