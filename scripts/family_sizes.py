"""Prints a table of the families' presets at full size: parameters, TFLOP, and the predicted memory of a run.

Everything is counted on networks without weights. Where a denoiser reads values of its input, its TFLOP are those of
two networks with one and two blocks, run with random weights on the CPU, and extended to its depth.
"""

import torch
from torch.utils.flop_counter import FlopCounterMode

from nfsd3d.config.compose import compose
from nfsd3d.prior.diffusers_prior import DiffusersPrior
from nfsd3d.prior.families.full_size import FULL_SIZES, full_size_prior
from nfsd3d.train.build import build_generator, find_method
from nfsd3d.train.memory.budget import GIB, Estimator
from nfsd3d.train.memory.chunking import configured_chunks

TERA = 1e12


def evaluation(prior: DiffusersPrior) -> float:
    """TFLOP of one evaluation of the denoiser, for one image and a prompt of full length."""
    device = prior.device
    context = prior.blank_context(1)
    latents, t = torch.zeros(1, *prior.latent_shape, device=device), prior.schedule.time(torch.tensor([500]))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        prior.predict_eps(latents, t.to(device), context)
    return counter.get_total_flops() / TERA


def encoding(prior: DiffusersPrior) -> float:
    """TFLOP of encoding one image, and of the gradient with respect to it."""
    size = prior.image_size
    image = torch.empty(1, 3, size, size, device=prior.device, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        prior.encode(image).sum().backward()
    return counter.get_total_flops() / TERA


def billions(network: torch.nn.Module) -> float:
    """Numbers in a network, in 10^9, with its constant tables."""
    return sum(value.numel() for value in network.state_dict().values()) / 1e9


def extended(name: str, image_size: int) -> float:
    """TFLOP of one evaluation of a denoiser that reads values, from networks of one and of two blocks."""
    depth = FULL_SIZES[name].depth
    priors = (full_size_prior(name, image_size, device="cpu", changes={depth: blocks}) for blocks in (1, 2))
    one, two = map(evaluation, priors)
    blocks = full_size_prior(name, image_size).denoiser.config[depth]
    return one + (blocks - 1) * (two - one)


def row(name: str) -> str:
    """A line of the table."""
    config = compose("nfsd", ["prompt=a corgi puppy", f"prior={name}", "machine.precision=bfloat16"])
    prior = full_size_prior(name, config.prior.image_size, torch.bfloat16)
    memory = "not predicted"
    if prior.family.traceable:
        estimator = Estimator(prior, build_generator(config), find_method("nfsd"), config)
        memory = f"{estimator.budget(configured_chunks(config.machine)).total / GIB:.1f}"
        flop = evaluation(prior)
    else:
        flop = extended(name, prior.image_size)
    denoiser, vae = (billions(network) for network in prior.networks)
    numbers = f"{denoiser:.2f} | {vae:.3f} | {flop:.1f} | {encoding(prior):.1f} | {memory}"
    return f"| `{name}` | {prior.image_size} | {'x'.join(map(str, prior.latent_shape))} | {numbers} |"


HEADINGS = (
    "`prior`",
    "pixels",
    "latents",
    "denoiser, 10⁹",
    "autoencoder, 10⁹",
    "evaluation, TFLOP",
    "encoding, TFLOP",
    "memory, GB",
)


def main() -> None:
    """Prints the table, a row at a time."""
    print(f"| {' | '.join(HEADINGS)} |")
    print("|---" * len(HEADINGS) + "|")
    for name in FULL_SIZES:
        print(row(name), flush=True)


if __name__ == "__main__":
    main()
