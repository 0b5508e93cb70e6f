"""Prompts' embeddings on disk, so that a run with known prompts loads no text encoder.

Text encoders of today's teachers take up to 10 GB and a minute to load. An entry is one file, named by a hash of what
decides its content: the files of the text encoders and their place, the libraries' versions, the precision, and the
prompt.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from nfsd3d.prior.files.folder import LoraFile
from nfsd3d.settings.paths import user_cache

_KEY = "entry"
"""In a file's metadata, the entry that it was written as."""


def cache_folder() -> Path:
    """The folder of the entries."""
    return user_cache() / "embeddings"


class EmbeddingCache:
    """The entries of one model's text encoders in one precision.

    An entry that cannot be read or written is as if it were not there: the prompt is embedded again.
    """

    def __init__(self, folder: Path, dtype: torch.dtype, loras: Sequence[LoraFile] = ()) -> None:
        """``folder`` is that of the model; its parts ``text_encoder*`` and ``tokenizer*`` count, and its ``loras``."""
        parts = [path for part in ("text_encoder*", "tokenizer*") for path in sorted(folder.glob(f"{part}/*"))]
        # The place too: copies of two models may have files of one size and time.
        files = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in parts]
        index = folder / "model_index.json"
        settings = index.read_text(encoding="utf-8") if index.is_file() else ""
        versions = [version(package) for package in ("nfsd3d", "diffusers", "transformers", "torch")]
        self._model: list[object] = [files, settings, versions, str(dtype)]
        for lora in loras:
            status = lora.path.stat()
            self._model.append([str(lora.path.resolve()), status.st_size, status.st_mtime_ns, lora.weight])

    def path(self, prompt: str, negative: bool) -> Path:
        """The file of the entry for a prompt."""
        key = json.dumps([self._model, prompt, negative], ensure_ascii=False)
        return cache_folder() / f"{hashlib.sha256(key.encode()).hexdigest()}.safetensors"

    def load(self, prompt: str, negative: bool) -> dict[str, Tensor] | None:
        """The tensors [1,...] of a prompt; None if there is no intact entry."""
        path = self.path(prompt, negative)
        with suppress(OSError, SafetensorError, ValueError), safe_open(path, "pt") as stream:
            if (stream.metadata() or {}).get(_KEY) == path.stem:
                return {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
        return None

    def save(self, prompt: str, negative: bool, tensors: Mapping[str, Tensor]) -> None:
        """Writes the entry of a prompt."""
        path = self.path(prompt, negative)
        with suppress(OSError, SafetensorError):
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".tmp", delete=False) as stream:
                temporary = Path(stream.name)
            try:
                contents = {name: value.cpu().contiguous() for name, value in tensors.items()}
                save_file(contents, temporary, metadata={_KEY: path.stem})
                os.replace(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)
