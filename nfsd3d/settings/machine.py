"""Settings of the machine: device, precision, memory, and the implementations of algorithms."""

import re
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, PositiveFloat, PositiveInt
from pydantic_core import PydanticCustomError

from nfsd3d.settings.types import described_type


def _check_device(name: str) -> str:
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise PydanticCustomError("range", "must be cpu, cuda or cuda:N")
    return name


Device = Annotated[str, AfterValidator(_check_device), described_type("cpu, cuda or cuda:N")]


@dataclass(frozen=True, kw_only=True)
class DeviceSettings:
    """The device and the number format of the prior's networks."""

    name: Literal["cpu", "cuda"]
    """Preset that the group's values came from (``machine=cpu|cuda``)."""
    device: Device
    """Torch device of all networks."""
    precision: Literal["float32", "bfloat16", "float16"]
    """Number format of the prior's networks; other than float32, the field's Triton MLP uses TF32."""


@dataclass(frozen=True)
class ChunkSettings:
    """How a training step is split to fit into memory."""

    rays_per_chunk: Annotated[int, Field(ge=256)] | None = None
    """Rays rendered together, and again in the backward pass: fewer take less memory, more time. null: all, once."""
    unet_batch_size: PositiveInt | None = None
    """Latents or images per call of the prior's networks: fewer take less memory, more time. null: a step's."""
    checkpoint_encoder: bool = False
    """Recompute the encoder's activations in the backward pass: 1/3 more encoder time saves most of its memory."""


@dataclass(frozen=True, kw_only=True)
class MachineSettings(ChunkSettings, DeviceSettings):
    """Device, precision and memory."""

    compile: Literal["auto"] | bool = "auto"
    """torch.compile for the prior's networks; auto: for Stable Diffusion on CUDA, and a trace of shapes on a CPU."""
    memory_gb: PositiveFloat | None = None
    """Predicted memory limit of a step in GiB, on CUDA; chunk sizes are reduced to fit. null: the free memory."""


@dataclass(frozen=True, kw_only=True)
class BackendSettings:
    """Implementations of the field (hash encoding and MLP), of ray sampling and of rasterisation."""

    field: Literal["torch", "numba", "triton", "tcnn"]
    """Hash encoding: torch (reference), numba (CPU), triton (CUDA, fuses the MLP), tcnn (CUDA, tiny-cuda-nn)."""
    sampler: Literal["torch", "numba", "triton", "nerfacc"]
    """Ray sampling: torch (reference), numba (CPU), triton (CUDA, composites too), nerfacc (CUDA)."""
    rasterizer: Literal["torch", "numba", "triton"] = "torch"
    """Rasterisation of a mesh: torch (reference), numba (CPU), triton (CUDA)."""
