"""One tokenisation: the prompt is a prefix, one stop token ends it, no doubled BOS, for the templates in use."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from align.core.chat import Chat, ChatError
from align.core.errors import UserError

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}"
    "<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}<|eot_id|>"
    "{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
# Drops the last line break of everything but the last turn, as templates that tidy the history do.
TRIMS_HISTORY = (
    "{% for m in messages %}"
    "<|im_start|>{{ m.role }}\n{{ m.content if loop.last else m.content | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
KINDS: dict[str, dict[str, Any]] = {
    "chatml": {"template": CHATML, "specials": ["<|im_start|>", "<|im_end|>"], "eos": "<|im_end|>", "bos": None},
    "llama3": {
        "template": LLAMA3, "bos": "<|begin_of_text|>", "eos": "<|end_of_text|>", "generation_eos": "<|eot_id|>",
        "specials": ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"],
    },
    "gemma": {
        "template": GEMMA, "bos": "<bos>", "eos": "<eos>", "generation_eos": "<end_of_turn>",
        "specials": ["<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"],
    },
}  # fmt: skip
PROMPTS = [
    [{"role": "user", "content": "Why does honey keep?"}],
    [{"role": "user", "content": "꿀은 왜 상하지 않나요?"}],
    [{"role": "user", "content": "ends with a space "}],
    [{"role": "user", "content": "ends with breaks.\n\n"}],
    [
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "Two."},
        {"role": "user", "content": "Three\U0001f642?"},
    ],
]
ANSWER = [{"role": "assistant", "content": "물이 적어서요. Bees know."}]


def make(folder: Path, kind: str, *, pad: str | None = "<|pad|>", adds_bos: bool = True, **changes: Any) -> Path:
    """A tokenizer folder over bytes; like Llama-3's, it adds BOS to every text that it is asked to tokenise."""
    spec = KINDS[kind] | changes
    specials = ["<|pad|>", *spec["specials"]]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({token: i for i, token in enumerate([*specials, *letters])}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    if spec["bos"] and adds_bos:
        backend.post_processor = processors.TemplateProcessing(
            single=f"{spec['bos']} $A", special_tokens=[(spec["bos"], specials.index(spec["bos"]))]
        )
    names = {"eos_token": spec["eos"]} | ({"bos_token": spec["bos"]} if spec["bos"] else {})
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, additional_special_tokens=spec["specials"], pad_token=pad, **names
    )
    tokenizer.chat_template = spec["template"]
    tokenizer.save_pretrained(str(folder))
    if "generation_eos" in spec:
        eos = [specials.index(spec["eos"]), specials.index(spec["generation_eos"])]
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": eos}))
    return folder


@pytest.fixture(params=KINDS)
def chat(request: pytest.FixtureRequest, tmp_path: Path) -> Chat:
    return Chat.load(make(tmp_path / request.param, request.param))


@pytest.mark.parametrize("prompt", PROMPTS, ids=["en", "ko", "space", "breaks", "turns"])
def test_prompt_is_a_prefix_and_one_stop_token_ends_the_answer(chat: Chat, prompt: list[dict[str, str]]) -> None:
    start, completion = chat.split(prompt, ANSWER)
    assert start == chat.prompt_ids(prompt)
    whole = chat.tokenizer.apply_chat_template([*prompt, *ANSWER], tokenize=True, return_dict=False)
    assert list(whole)[: len(start) + len(completion)] == start + completion
    assert [token in chat.stop_ids for token in completion] == [False] * (len(completion) - 1) + [True]
    assert chat.text(completion) == ANSWER[0]["content"]
    bos = chat.tokenizer.bos_token_id
    assert (start + completion).count(bos) == (bos is not None)
    assert bos is None or start[0] == bos
    assert all(isinstance(token, int) and 0 <= token < len(chat.tokenizer) for token in start + completion)
    # What is sampled after the prompt is what is trained after it, joined by ids.
    assert chat.tokenizer.decode(start + completion, skip_special_tokens=True).endswith(ANSWER[0]["content"])


def test_stop_tokens_are_those_of_tokenizer_and_generation_config(tmp_path: Path) -> None:
    llama = Chat.load(make(tmp_path / "llama3", "llama3"))
    ids = llama.tokenizer.convert_tokens_to_ids(["<|end_of_text|>", "<|eot_id|>"])
    assert list(llama.stop_ids) == ids
    (tmp_path / "llama3" / "generation_config.json").write_text(json.dumps({"eos_token_id": ids[1]}))
    assert set(Chat.load(tmp_path / "llama3").stop_ids) == set(ids)
    (tmp_path / "llama3" / "generation_config.json").write_text("{}")
    only_tokenizer = Chat.load(tmp_path / "llama3")
    assert list(only_tokenizer.stop_ids) == ids[:1]
    with pytest.raises(ChatError, match="no_stop_token"):  # the template ends a turn with another token
        only_tokenizer.split(PROMPTS[0], ANSWER)


def test_a_pad_token_that_is_eos_changes_nothing(tmp_path: Path) -> None:
    apart = Chat.load(make(tmp_path / "apart", "chatml"))
    same = Chat.load(make(tmp_path / "same", "chatml", pad="<|im_end|>"))
    none = Chat.load(make(tmp_path / "none", "chatml", pad=None))
    assert same.tokenizer.pad_token_id == same.tokenizer.eos_token_id != apart.tokenizer.pad_token_id
    for prompt in PROMPTS:
        assert same.split(prompt, ANSWER) == apart.split(prompt, ANSWER) == none.split(prompt, ANSWER)
    assert same.stop_ids == apart.stop_ids == none.stop_ids


def test_a_doubled_bos_is_refused(tmp_path: Path) -> None:
    doubled = Chat.load(make(tmp_path / "doubled", "llama3", template="{{ bos_token }}" + LLAMA3))
    with pytest.raises(ChatError, match="double_bos"):
        doubled.prompt_ids(PROMPTS[0])
    with pytest.raises(ChatError, match="double_bos"):
        doubled.split(PROMPTS[0], ANSWER)


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (TRIMS_HISTORY, "prompt_is_not_a_prefix"),
        (CHATML.replace("assistant\n", "assistant\n<think>\n"), "prompt_is_not_a_prefix"),
        (CHATML.replace("<|im_end|>\n", "\n"), "no_stop_token"),
        (CHATML.replace("<|im_end|>\n", "<|im_end|><|im_end|>\n"), "more_than_one_stop_token"),
        (CHATML.replace("<|im_end|>\n", "<|im_end|>over\n"), "text_after_the_stop_token"),
    ],
)
def test_broken_templates_are_refused(tmp_path: Path, template: str, reason: str) -> None:
    broken = Chat.load(make(tmp_path / "broken", "chatml", template=template))
    with pytest.raises(ChatError, match=f"^{reason}$"):
        broken.split([{"role": "user", "content": "ends with a break\n"}], ANSWER)


def test_an_answer_that_holds_a_stop_token_is_refused(tmp_path: Path) -> None:
    chat = Chat.load(make(tmp_path / "chatml", "chatml"))
    with pytest.raises(ChatError, match="more_than_one_stop_token"):
        chat.split(PROMPTS[0], [{"role": "assistant", "content": "Well.<|im_end|>\n<|im_start|>user\nMore?"}])


def test_a_dialogue_that_the_template_refuses_is_a_reject_not_a_crash(tmp_path: Path) -> None:
    gemma = Chat.load(make(tmp_path / "gemma", "gemma"))
    with pytest.raises(ChatError, match="template_refuses: System role not supported"):
        gemma.split([{"role": "system", "content": "Be brief."}, *PROMPTS[0]], ANSWER)


def test_an_empty_answer_is_its_stop_token(tmp_path: Path) -> None:
    chat = Chat.load(make(tmp_path / "chatml", "chatml"))
    assert chat.split(PROMPTS[0], [{"role": "assistant", "content": ""}])[1] == [chat.tokenizer.eos_token_id]


def test_text_drops_special_tokens_and_nothing_else(tmp_path: Path) -> None:
    chat = Chat.load(make(tmp_path / "chatml", "chatml"))
    ids = chat.tokenizer.encode(" 꿀은\n\n달다. <b>", add_special_tokens=False)
    assert chat.text([*ids, chat.tokenizer.eos_token_id]) == "꿀은\n\n달다. <b>"


def test_a_folder_without_a_template_is_named(tmp_path: Path) -> None:
    make(tmp_path / "plain", "chatml", template=None)
    with pytest.raises(UserError, match=f"{tmp_path / 'plain'}: the tokenizer has no chat template"):
        Chat.load(tmp_path / "plain")


def test_a_folder_without_a_tokenizer_is_named(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UserError, match=f"^{folder}: no tokenizer that transformers can load") as caught:
            Chat.load(folder)
        assert "\n" not in str(caught.value)


def test_a_folder_without_any_stop_token_is_named(tmp_path: Path) -> None:
    make(tmp_path / "endless", "chatml", eos=None)
    with pytest.raises(UserError, match=r"endless: neither tokenizer nor .* names an end-of-text token"):
        Chat.load(tmp_path / "endless")


@pytest.mark.parametrize("text", ["{cut", "[1]"])
def test_a_broken_generation_config_is_named(tmp_path: Path, text: str) -> None:
    make(tmp_path / "m", "chatml")
    (tmp_path / "m" / "generation_config.json").write_text(text)
    with pytest.raises(UserError, match=r"generation_config\.json: not a JSON object"):
        Chat.load(tmp_path / "m")


def test_the_built_in_tiny_model_obeys_the_rules(tiny_llama: Path) -> None:
    chat = Chat.load(tiny_llama)
    for prompt in PROMPTS:
        start, completion = chat.split(prompt, ANSWER)
        assert start == chat.prompt_ids(prompt) and completion[-1] in chat.stop_ids
        assert chat.text(completion) == ANSWER[0]["content"]
