"""Compiles every Triton kernel for a GPU that need not be there, and prints what came out as JSON.

Run by test_kernels_triton.py in a process of its own: where TRITON_INTERPRET is set, Triton has no compiler.
    python tests/compile_triton.py CAPABILITY        (such as 90)
"""

import json
import sys

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

import nfsd3d.field.hashgrid_triton as encoding
import nfsd3d.render.compositing_triton as compositing
import nfsd3d.render.samplers_triton as sampling
from nfsd3d import kernels_triton
from nfsd3d.field.hashgrid import HashGridSpec, hash_encoding
from nfsd3d.render.occupancy import OccupancyGrid
from nfsd3d.render.samplers import Lines, RaySamples

POINTERS = {torch.float32: "*fp32", torch.float64: "*fp64", torch.int64: "*i64", torch.bool: "*i1"}
TARGET = GPUTarget("cuda", int(sys.argv[1]), 32)
found = []


def compile_instead(kernel, programs, *arguments, **constants):
    """Takes the place of ``launch``: the same signature, on its way to a GPU that the launch would have found."""
    signature, values = dict.fromkeys(constants, "constexpr"), dict(constants)
    for name, argument in zip(kernel.arg_names, arguments, strict=False):
        if isinstance(argument, torch.Tensor):
            signature[name] = POINTERS[argument.dtype]
        elif argument is None:
            signature[name], values[name] = "constexpr", None
        else:
            signature[name] = "i32" if isinstance(argument, int) else "fp32"
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(kernel.arg_names) if signature[name][0] == "*"}
    source = ASTSource(fn=kernel, signature=signature, constexprs=values, attrs=aligned)
    compiled = triton.compile(source, target=TARGET, options={"enable_fp_fusion": False})
    found.append({"name": f"{kernel.__module__}.{kernel.__name__}", "constants": constants, "ptx": compiled.asm["ptx"],
                  "types": sorted(set(signature.values())), "bytes": len(compiled.asm["cubin"])})  # fmt: skip


kernels_triton.INTERPRETED = True  # passes for a GPU in check_device; the sizes of the tiles are chosen already
for module in (encoding, sampling, compositing):
    module.launch = compile_instead

for width, dtype in (
    (1, torch.float32),
    (2, torch.float32),
    (2, torch.float64),
    (3, torch.float32),
    (8, torch.float32),
):
    spec = HashGridSpec(levels=3, features=width, log2_entries=9, base_resolution=5)
    features = hash_encoding(spec, "triton").to(dtype)(torch.rand(77, 3, dtype=dtype).requires_grad_())
    features.backward(torch.zeros_like(features))

grid = OccupancyGrid(17, 1.0, step_size=0.05, alpha_threshold=0.01, decay=0.95, warmup=10)
ray = torch.zeros(9)
sampling.torch.empty = torch.zeros  # nothing runs: the counts are none
_, fill = sampling.march_triton(Lines(torch.zeros(9, 3), torch.zeros(9, 3), ray, ray, ray), 0.1, grid)
fill()

for channels, dtype in ((1, torch.float32), (7, torch.float32), (13, torch.float64)):
    depth = torch.zeros(5, dtype=dtype)
    samples = RaySamples(torch.zeros(5, dtype=torch.int64), depth, depth, torch.tensor([0, 5]))
    density, values = depth.clone().requires_grad_(), torch.zeros(5, channels, dtype=dtype).requires_grad_()
    weights = compositing.render_weights(density, samples)
    (compositing.accumulate(values, samples, weights).sum() + compositing.accumulate(values, samples).sum()).backward()

print(json.dumps(found))
