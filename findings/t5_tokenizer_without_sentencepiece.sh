#!/usr/bin/env bash
# transformers 5.23.0: a T5 tokenizer that comes as spiece.model needs sentencepiece and protobuf, and the error names
# tiktoken.
#
# Expected: either the tokenizer is read, or an ImportError names the package that is missing.
# Seen: without one of the two the file is taken for tiktoken's, and a ValueError says that tiktoken is required. Installing
# tiktoken does not help: then a line of the file cannot be parsed. With both packages the same folder is read. Models
# such as PixArt-Sigma have their T5 tokenizer as spiece.model only. (nfsd3d depends on both packages.)
#
# Exits with 0 while this is so, with 1 when it has changed.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet transformers==5.23.0
venv/bin/pip install --quiet --target with sentencepiece==0.2.3
venv/bin/pip install --quiet --target tik tiktoken==0.13.0
venv/bin/pip install --quiet --target both sentencepiece==0.2.3 protobuf==7.36.2

cat > make.py <<'PY'
import json
import pathlib

import sentencepiece

pathlib.Path("text.txt").write_text("a red cube\na blue cube, front view\n" * 20)
pathlib.Path("tokenizer").mkdir()
sentencepiece.SentencePieceTrainer.train(
    input="text.txt", model_prefix="small", vocab_size=40, hard_vocab_limit=False, minloglevel=2
)
pathlib.Path("small.model").rename("tokenizer/spiece.model")
settings = {"tokenizer_class": "T5Tokenizer", "extra_ids": 0, "pad_token": "<unk>"}
pathlib.Path("tokenizer/tokenizer_config.json").write_text(json.dumps(settings))
PY
cat > read.py <<'PY'
from transformers import T5Tokenizer

try:
    print("read:", len(T5Tokenizer.from_pretrained("tokenizer")("a red cube").input_ids), "tokens")
except Exception as error:
    print(f"{type(error).__name__}: {str(error).splitlines()[0]}")
PY
PYTHONPATH=with venv/bin/python make.py
without="$(venv/bin/python read.py 2>/dev/null)"
with_tiktoken="$(PYTHONPATH=tik venv/bin/python read.py 2>/dev/null)"
one="$(PYTHONPATH=with venv/bin/python read.py 2>/dev/null)"
both="$(PYTHONPATH=both venv/bin/python read.py 2>/dev/null)"
printf 'without: %s\nwith tiktoken: %s\n' "$without" "$with_tiktoken"
printf 'with sentencepiece: %s\nwith sentencepiece and protobuf: %s\n' "$one" "$both"
if [[ "$without" == *tiktoken* && "$with_tiktoken" != read:* && "$one" == *tiktoken* && "$both" == read:* ]]; then
    echo "as described"
else
    echo "changed: see the output above"
    exit 1
fi
