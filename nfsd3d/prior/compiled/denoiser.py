"""A denoiser without Python between its operations: compiled for a few batch sizes, or traced for any."""

import warnings
from collections.abc import Callable, Hashable
from typing import Protocol

import torch
from torch import Tensor

from nfsd3d.prior.compiled.cuda_graphs import CapturedGraph
from nfsd3d.prior.compiled.shapes import channels_last, padded, padded_batch_size

Denoise = Callable[..., Tensor]
"""[N,C,h,w] of latents [N,C,h,w], times [N] and further tensors [N,...]."""


class FastDenoiser(Protocol):
    """A denoiser in another form, with the same numbers up to rounding."""

    def __call__(self, *arguments: Tensor, at_most: int | None = None) -> Tensor:
        """The denoiser's output [N,C,h,w], which the next call may overwrite; a batch is padded up to ``at_most``."""


class CompiledDenoiser:
    """A denoiser that torch.compile compiles at the first call of each batch size.

    Args:
        denoise: the denoiser.
        backend: torch.compile's.
        batch_unit: a batch is padded to a multiple of it (see `nfsd3d.prior.compiled.shapes.padded_batch_size`).
        captured: whether each batch size is also captured as a CUDA graph.
    """

    def __init__(self, denoise: Denoise, backend: str, *, batch_unit: int, captured: bool) -> None:
        compiled = torch.compile(denoise, backend=backend, dynamic=False)
        self.run: Denoise = CapturedGraph(compiled, one_memory=True) if captured else compiled
        self._batch_unit = batch_unit

    def __call__(self, *arguments: Tensor, at_most: int | None = None) -> Tensor:
        """The denoiser's output [N,C,h,w], which the next call may overwrite."""
        count = len(arguments[0])
        size = padded_batch_size(count, self._batch_unit, at_most)
        latents, *others = (padded(values, size) for values in arguments)
        return self.run(channels_last(latents), *others)[:count]


class TracedDenoiser:
    """A denoiser whose operations are recorded after some calls, and then run again without Python between them.

    The same operations on the same numbers: results have the same bits, at any batch size. Worthwhile for a small
    network on a CPU, of whose time the modules' Python code takes a quarter; recording takes a second.

    Args:
        denoise: the denoiser.
        network: the module whose weights it uses.
        architecture: tells networks apart whose operations differ for arguments of the same shapes.
        example: gives arguments of it to record with, at the first call that is traced.
        after: calls before that.
        on_failure: gets the error if recording fails, and the denoiser goes on as it is; None: the error is raised.
    """

    def __init__(
        self,
        denoise: Denoise,
        network: torch.nn.Module,
        architecture: Hashable,
        example: Callable[[], tuple[Tensor, ...]],
        *,
        after: int = 0,
        on_failure: Callable[[Exception], None] | None = None,
    ) -> None:
        self.run = denoise
        self._network, self._architecture = network, architecture
        self._example, self._on_failure = example, on_failure
        self._untraced_calls = after
        self.is_traced = False

    def __call__(self, *arguments: Tensor, at_most: int | None = None) -> Tensor:
        """The denoiser's output [N,C,h,w]; batches are never padded."""
        if self._untraced_calls == 0:
            self.run = self._traced()
        self._untraced_calls -= 1
        return self.run(*arguments)

    def _traced(self) -> Denoise:
        function, weights = _with_weights(self._network, self.run)
        arguments = self._example()
        key = self._architecture, *((tensor.shape, tensor.dtype, tensor.device) for tensor in (*weights, *arguments))
        shared = not any(True for _ in self._network.buffers())  # buffers are constants of a recording
        recorded = _RECORDED.get(key) if shared else None
        if recorded is None:
            with torch.no_grad(), warnings.catch_warnings():
                # It has a successor, torch.export, which neither takes any batch size nor saves time here.
                warnings.simplefilter("ignore", DeprecationWarning)
                warnings.simplefilter("ignore", torch.jit.TracerWarning)  # checks of shapes are not repeated
                try:
                    recorded = torch.jit.trace(function, (*weights, *arguments), check_trace=False)
                except Exception as error:  # the tracer is deprecated: a version of torch may come without it
                    if self._on_failure is None:
                        raise
                    self._on_failure(error)
                    return self.run
            if shared:
                _RECORDED[key] = recorded
        self.is_traced = True
        return lambda *arguments: recorded(*weights, *arguments)


_RECORDED: dict[Hashable, Callable[..., Tensor]] = {}
"""What this process has recorded: torch keeps it until the process ends, so that each new recording, and with it the
weights if they were its constants, would make a worker grow with every job."""


def _with_weights(network: torch.nn.Module, denoise: Denoise) -> tuple[Denoise, tuple[Tensor, ...]]:
    """A function of the parameters of ``network`` and the arguments of ``denoise``, which calls it; the parameters."""
    places = [(module, name) for module in network.modules() for name, _ in module.named_parameters(recurse=False)]
    own = tuple(getattr(module, name) for module, name in places)

    def called(*given: Tensor) -> Tensor:
        try:
            for (module, name), weight in zip(places, given[: len(places)], strict=True):
                delattr(module, name)  # else it would have to be a parameter
                setattr(module, name, weight)
            return denoise(*given[len(places) :])
        finally:
            for (module, name), parameter in zip(places, own, strict=True):
                if hasattr(module, name):
                    delattr(module, name)
                module.register_parameter(name, parameter)

    return called, own
