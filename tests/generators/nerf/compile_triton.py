"""Compiles every Triton kernel for a GPU without running it; prints the results as JSON.

Run by test_launch_triton.py in a process of its own: with TRITON_INTERPRET set, Triton has no compiler.
    python tests/generators/nerf/compile_triton.py CAPABILITY        (such as 90)
"""

import json
import sys

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

import nfsd3d.generators.mesh.rasterize.triton_kernels as rasterizing
import nfsd3d.generators.nerf.compositing.triton_kernels as compositing
import nfsd3d.generators.nerf.hashgrid.triton_kernels as encoding  # noqa: F401 (before INTERPRETED, so that the tiles are a GPU's)
import nfsd3d.generators.nerf.mlp_triton as network
import nfsd3d.generators.nerf.morton_triton as ordering
import nfsd3d.generators.nerf.sampling.triton_kernels as sampling
from nfsd3d.generators.nerf import launch_triton
from nfsd3d.generators.nerf.hashgrid.encoding import hash_encoding
from nfsd3d.generators.nerf.hashgrid.spec import HashGridSpec
from nfsd3d.generators.nerf.occupancy import OccupancyGrid
from nfsd3d.generators.nerf.sampling.sampling import Lines, RaySamples
from nfsd3d.views.cameras import Rays

found = []


class Driver:
    """The driver queries of Triton's compiler."""

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0

    def get_current_target(self):
        return GPUTarget("cuda", int(sys.argv[1]), 32)


def compile_only(kernel, *arguments, grid, warmup, run=JITFunction.run, **options):
    compiled = run(kernel, *arguments, grid=grid, warmup=True, **options)
    tensors = {str(argument.dtype) for argument in arguments if isinstance(argument, torch.Tensor)}
    found.append({"name": f"{kernel.__module__}.{kernel.__name__}", "options": options, "tensors": sorted(tensors),
                  **{form: compiled.asm[form] for form in ("ttgir", "ptx")},
                  "bytes": len(compiled.asm["cubin"])})  # fmt: skip


triton.runtime.driver.set_active(Driver())
JITFunction.run = compile_only
launch_triton.INTERPRETED = True  # so that tensors on the CPU pass

# Ones become constants of Triton's.
for width, dtype, levels, log2_entries, count, precision in (
    (2, torch.float32, 3, 9, 77, "float32"),
    (2, torch.float32, 3, 9, 77, "float16"),
    (2, torch.float64, 1, 1, 1, "float32"),
    (3, torch.float32, 3, 9, 77, "float32"),
    (8, torch.float32, 3, 9, 77, "float32"),
):
    sizes = {"levels": levels, "features": width, "log2_entries": log2_entries}
    spec = HashGridSpec(**sizes, base_resolution=5, growth=1.5, precision=precision)
    module = hash_encoding(spec, "triton").to(dtype)
    features = module(torch.rand(count, 3, dtype=dtype).requires_grad_())
    features.backward(torch.zeros_like(features))

# The size of the recipes, all gradients and those of analytic normals; odd sizes, and row by row in memory.
for inputs, units, dtype, tensor_cores, trained, by_feature in (
    (32, 64, torch.float32, True, True, True),
    (32, 64, torch.float32, True, False, True),
    (32, 64, torch.float32, False, True, True),
    (15, 40, torch.float32, True, True, False),
    (40, 15, torch.float32, False, True, False),
    (40, 15, torch.float64, False, True, True),
):
    features = torch.zeros(inputs, 77, dtype=dtype).T if by_feature else torch.zeros(77, inputs, dtype=dtype)
    hidden = torch.zeros(units, inputs, dtype=dtype, requires_grad=trained)
    output = torch.zeros(4, units, dtype=dtype, requires_grad=trained)
    raw = network.perceptron(features.requires_grad_(), hidden, output, tensor_cores=tensor_cores)
    raw.backward(torch.zeros_like(raw))

sampling.torch.empty = torch.zeros  # where nothing runs, nothing is counted
for resolution, rays in ((17, 9), (1, 1)):
    grid = OccupancyGrid(resolution, 1.0, step_size=0.05, alpha_threshold=0.01, decay=0.95, warmup=10)
    lines = Lines(torch.zeros(rays, 3), torch.zeros(rays, 3), *torch.zeros(3, rays).unbind())
    _, fill = sampling.march_triton(lines, 0.1, grid)
    fill(0)

for channels, dtype in ((1, torch.float64), (7, torch.float32)):
    depth = torch.zeros(5, dtype=dtype)
    samples = RaySamples(torch.zeros(5, dtype=torch.int64), depth, depth, torch.tensor([0, 5]))
    density, values = depth.clone().requires_grad_(), torch.zeros(5, channels, dtype=dtype).requires_grad_()
    weights = compositing.render_weights(density, samples)
    (compositing.accumulate(values, samples, weights).sum() + compositing.accumulate(values, samples).sum()).backward()
    compositing.accumulate(values.detach(), samples, depth.clone().requires_grad_()).sum().backward()

compositing.contributes(torch.zeros(5), torch.zeros(()), samples, 9.2)
colour = torch.zeros(5, 3).requires_grad_()
compositing.composite(torch.zeros(5).requires_grad_(), colour, torch.zeros(5), samples).sum().backward()
rays = Rays(torch.zeros(1, 3), torch.zeros(1, 3))
edges = torch.zeros(5)
sampling.points_triton(RaySamples(samples.ray_indices, edges, edges, samples.offsets), rays, torch.zeros(1))

ordering.space_order(torch.rand(77, 3))

for views, triangles in ((2, 3), (1, 1)):
    rasterizing.cover_triton(torch.zeros(views, 5, 3), torch.zeros(triangles, 3, dtype=torch.int64), 17, 16)

print(json.dumps(found))
