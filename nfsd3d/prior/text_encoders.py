"""Prompts to what a denoiser is conditioned on: Stable Diffusion's text encoder, and those of a diffusers pipeline."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from nfsd3d.context import Context
from nfsd3d.errors import InputError
from nfsd3d.prior.files.count_tokens import without_unknown_punctuation

if TYPE_CHECKING:
    from transformers import CLIPTextModel, CLIPTokenizer

    from nfsd3d.prior.embedding_cache import EmbeddingCache
    from nfsd3d.prior.families.base import Family


class TextEncoders(Protocol):
    """The text encoders of a prior, which are freed once all prompts have been embedded."""

    def embed(self, prompts: list[str], negative: Sequence[bool] | None) -> Context:
        """What N prompts are for the denoiser, [N], float32; see `nfsd3d.prior.base.Prior.embed`."""
        ...

    def networks(self) -> list[nn.Module]:
        """The networks in memory."""
        ...

    def blank(self, count: int, device: torch.device) -> Context:
        """A condition of ``count`` prompts of the right shape, to run the denoiser once; also after :meth:`free`."""
        ...

    def free(self) -> None:
        """Frees the networks."""
        ...


class ClipTextEncoder:
    """The CLIP text encoder of Stable Diffusion 1 and 2."""

    def __init__(self, network: CLIPTextModel, tokenizer: CLIPTokenizer) -> None:
        self._network: CLIPTextModel | None = network.eval().requires_grad_(False)
        self._tokenizer = tokenizer
        self._length = min(tokenizer.model_max_length, network.config.max_position_embeddings)
        self._width = network.config.hidden_size

    def networks(self) -> list[nn.Module]:
        """The one encoder, until it is freed."""
        return [] if self._network is None else [self._network]

    def free(self) -> None:
        """Frees the encoder."""
        self._network = None

    def blank(self, count: int, device: torch.device) -> Context:
        """Embeddings [count,L,D] of zeros."""
        return Context.of(torch.zeros(count, self._length, self._width, device=device))

    @torch.no_grad()
    def embed(self, prompts: list[str], negative: Sequence[bool] | None) -> Context:
        """[N] last hidden states [N,L,D], padded to the full length L, float32.

        Punctuation without a token in a small tokenizer is replaced by a space.

        Raises:
            InputError: a prompt has more tokens than the encoder's context length.
        """
        assert self._network is not None
        length = self._length
        prompts = [without_unknown_punctuation(prompt, self._is_unknown) for prompt in prompts]
        for prompt in prompts:
            tokens = len(self._tokenizer(prompt, verbose=False).input_ids)
            if tokens > length:
                raise InputError(
                    f"prompt={_shortened(prompt)!r} is {tokens - 2} tokens long and the prior reads {length - 2}: "
                    "shorten it"
                )
        ids = self._tokenizer(prompts, padding="max_length", max_length=length, return_tensors="pt").input_ids
        # No attention mask: these models were trained with attention to the padding.
        return Context.of(self._network(ids.to(self._network.device)).last_hidden_state.float())

    def _is_unknown(self, character: str) -> bool:
        return self._tokenizer.unk_token_id in self._tokenizer(character).input_ids[1:-1]


class PipelineTextEncoders:
    """The text encoders of a diffusers pipeline, which is loaded without its other networks when a prompt comes."""

    def __init__(
        self,
        load: Callable[[bool], Any],
        family: Family,
        cache: EmbeddingCache | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        """``load(False)`` gives the pipeline with tokenizers alone, ``load(True)`` with encoders.

        Prompts in the ``cache`` need neither, and too long ones are found before the encoders are loaded. Results are
        on ``device``.
        """
        self._load, self._family, self._cache, self._device = load, family, cache, device
        self._pipeline: Any = None
        self._shapes: dict[str, tuple[torch.Size, torch.dtype]] | None = None

    def networks(self) -> list[nn.Module]:
        """Its encoders, until they are freed."""
        parts = {} if self._pipeline is None else self._pipeline.components
        return [part for part in parts.values() if isinstance(part, nn.Module)]

    def free(self) -> None:
        """Frees the pipeline."""
        self._pipeline = None

    def blank(self, count: int, device: torch.device) -> Context:
        """Ones of the shapes and types of the last prompts that were embedded: every token counts as a word."""
        if self._shapes is None:
            raise RuntimeError("no prompt was embedded yet")
        return Context(
            {
                name: torch.ones(count, *shape, dtype=dtype, device=device)
                for name, (shape, dtype) in self._shapes.items()
            }
        )

    @torch.no_grad()
    def embed(self, prompts: list[str], negative: Sequence[bool] | None) -> Context:
        """[N] the tensors of `nfsd3d.prior.families.base.Embed`, float32 where they are numbers.

        Raises:
            InputError: a prompt has more tokens than one of the encoders reads; a pipeline would cut it off.
        """
        pairs = list(zip(prompts, negative or [not prompt for prompt in prompts], strict=True))
        known = [None if self._cache is None else self._cache.load(*pair) for pair in pairs]
        new = [pair for pair, tensors in zip(pairs, known, strict=True) if tensors is None]
        if new:
            self._check_lengths(new)
        # Alone, so that no prompt changes another one's rounding or padding.
        found = [tensors or self._embedded(*pair) for pair, tensors in zip(pairs, known, strict=True)]
        parts = [Context(tensors).to(self._device) for tensors in found]
        context = parts[0].joined(parts[1:])
        self._shapes = {name: (value.shape[1:], value.dtype) for name, value in context.tensors.items()}
        return context

    def _embedded(self, prompt: str, negative: bool) -> dict[str, Tensor]:
        if self._pipeline is None:
            self._pipeline = self._load(True)
        assert self._family.embed is not None
        given = self._family.embed(self._pipeline, [prompt], negative)
        widened = {name: _widened(value) for name, value in given.items()}
        if self._cache is not None:
            self._cache.save(prompt, negative, widened)
        return widened

    def _check_lengths(self, pairs: Sequence[tuple[str, bool]]) -> None:
        """Raises `InputError` for the first of the prompts (text, whether negative) that is too long."""
        pipeline = self._load(False) if self._pipeline is None else self._pipeline
        for name, longest in self._family.lengths.items():
            tokenizer = getattr(pipeline, name, None)
            if tokenizer is None:
                continue
            length = min(longest, tokenizer.model_max_length)
            for prompt, negative in pairs:
                text = self._family.written(pipeline, prompt, negative)
                excess = len(tokenizer(text, truncation=False, verbose=False).input_ids) - length
                if excess > 0:
                    raise InputError(
                        f"prompt={_shortened(prompt)!r} is {excess} tokens too long for the prior's {name}, which "
                        f"reads {length}: shorten it"
                    )


def _widened(value: Tensor) -> Tensor:
    return value.float() if value.is_floating_point() else value


def _shortened(text: str, limit: int = 60) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
