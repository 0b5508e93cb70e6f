"""CLIP score and R-Precision (arXiv 2104.08718; 2112.01455, section 4): for prompts without ground truth."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nfsd3d.errors import InputError

# The pixel normalisation of all CLIP models of OpenAI and OpenCLIP.
_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_HUB_TIMEOUT = 10.0


@dataclass(frozen=True)
class ClipScore:
    """The scores of one run. ``score`` is 100 times the mean cosine similarity of its views and its prompt.
    ``retrieved`` is whether its own prompt is the nearest one; None for fewer than two different prompts.
    """

    prompt: str
    score: float
    retrieved: bool | None


@dataclass(frozen=True)
class ClipRow:
    """The runs of one row: the mean and the standard deviation of their CLIP scores (None without a view to score),
    the shares retrieved and diverged, and the means of their minutes and of their peak memory in GB (of the GPU, or of
    the process where there is none).
    """

    runs: int
    score: float | None
    deviation: float | None
    retrieved: float | None
    diverged: float
    minutes: float | None
    memory_gb: float | None


def summarize_clip(scores: Sequence[ClipScore], summaries: Sequence[Mapping[str, Any]]) -> ClipRow:
    """The row of runs with these ``scores``, some of which may have none, and ``summary.json``."""
    values = [score.score for score in scores]
    found = [float(score.retrieved) for score in scores if score.retrieved is not None]
    seconds = [float(summary["seconds"]) for summary in summaries if summary.get("seconds")]
    peaks = [summary.get("peak_memory_mb") or {} for summary in summaries]
    memory = [float(peak.get("cuda", peak.get("host", 0.0))) / 1024 for peak in peaks if peak]
    return ClipRow(
        runs=len(summaries),
        score=fmean(values) if values else None,
        deviation=stdev(values) if len(values) > 1 else None,
        retrieved=fmean(found) if found else None,
        diverged=fmean(summary.get("status") == "diverged" for summary in summaries),
        minutes=fmean(seconds) / 60 if seconds else None,
        memory_gb=fmean(memory) if memory else None,
    )


class ClipScorer:
    """A CLIP model, frozen; made by :meth:`load`."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        """``model`` is a ``transformers.CLIPModel`` and ``tokenizer`` its ``CLIPTokenizer``."""
        self._model, self._tokenizer = model.eval().requires_grad_(False), tokenizer

    @classmethod
    def load(cls, model: str, device: str = "cpu") -> "ClipScorer":
        """The model in a folder or of a hub id.

        Raises:
            InputError: no such folder, not a CLIP model, or the hub cannot be reached.
        """
        check_available(model)
        from transformers import CLIPModel, CLIPTokenizer

        try:
            network: Any = CLIPModel.from_pretrained(model)
            tokenizer = CLIPTokenizer.from_pretrained(model)
        except (OSError, ValueError) as error:
            raise InputError(f"--clip {model}: cannot be loaded as a CLIP model ({error})") from error
        return cls(network.to(device), tokenizer)

    @torch.no_grad()
    def embed_images(self, images: Tensor) -> Tensor:
        """[N,D] unit embeddings of images [N,3,H,W] in [0,1]."""
        config = self._model.config.vision_config
        device = self._model.device
        size = (config.image_size, config.image_size)
        images = F.interpolate(images.to(device), size=size, mode="bicubic", antialias=True, align_corners=False)
        mean, std = (images.new_tensor(values)[:, None, None] for values in (_MEAN, _STD))
        features = self._model.vision_model((images.clamp(0, 1) - mean) / std).pooler_output
        return F.normalize(self._model.visual_projection(features), dim=-1)

    @torch.no_grad()
    def embed_texts(self, texts: list[str]) -> Tensor:
        """[N,D] unit embeddings."""
        tokens = self._tokenizer(texts, padding=True, truncation=True, return_tensors="pt").to(self._model.device)
        features = self._model.text_model(**tokens).pooler_output
        return F.normalize(self._model.text_projection(features), dim=-1)

    def score(self, views: list[Tensor], prompts: list[str]) -> list[ClipScore]:
        """The score of each run: its views [V,3,H,W] in [0,1] and its prompt."""
        names = list(dict.fromkeys(prompts))
        texts = self.embed_texts(names)
        scores = []
        for images, prompt in zip(views, prompts, strict=True):
            similarity = (self.embed_images(images) @ texts.T).mean(0)
            own = names.index(prompt)
            retrieved = int(similarity.argmax()) == own if len(names) > 1 else None
            scores.append(ClipScore(prompt, 100 * float(similarity[own]), retrieved))
        return scores


def check_available(model: str) -> None:
    """Fails immediately where ``from_pretrained`` would retry for half a minute.

    Raises:
        InputError: no such folder or hub id, or the hub cannot be reached.
    """
    if Path(model).is_dir():
        if not (Path(model) / "config.json").exists():
            raise InputError(f"--clip {model}: the folder has no config.json; give the folder of a CLIPModel")
        return
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", model):
        raise InputError(f"--clip {model}: no such folder, and not a hub id of the form owner/name")
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.errors import HTTPError

    if isinstance(try_to_load_from_cache(model, "config.json"), str):
        return
    try:
        HfApi().model_info(model, timeout=_HUB_TIMEOUT)
    except (OSError, HTTPError) as error:
        raise InputError(f"--clip {model}: not in the local cache, and the hub did not give it ({error})") from error
