"""The bundled language model: its shipped figures are true, its files load, and the script that trains it works."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import random
import re
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from tokenizers import Tokenizer
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from frozenllm.core.weights import heldout
from frozenllm.core.weights.heldout import bits_per_byte, sequence_nats

BUNDLED = Path(heldout.__file__).with_name("bundled")
TOOLS = Path(__file__).resolve().parents[2] / "tools"
METRICS = json.loads((BUNDLED / "metrics.json").read_text(encoding="utf-8"))
TOKENIZER = Tokenizer.from_file(str(BUNDLED / "tokenizer.json"))


@pytest.fixture(scope="module")
def excerpt() -> str:
    return (BUNDLED / "heldout.txt").read_bytes().decode("utf-8")


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(BUNDLED, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def tool():
    """The modules of tools/, importable as they are when the script runs."""
    sys.path.insert(0, str(TOOLS))
    try:
        spec = importlib.util.spec_from_file_location("pretrain_lm", TOOLS / "pretrain_lm.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        from bundled_lm import corpus, ngrams, training

        module.corpus, module.ngrams, module.training = corpus, ngrams, training
        yield module
    finally:
        sys.path.remove(str(TOOLS))


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    """A made-up text with a little structure, about 60 kB."""
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdeiournst", k=rng.randint(1, 8))) for _ in range(150)]
    lines = (" ".join(rng.choices(words, k=rng.randint(4, 12))).capitalize() + "." for _ in range(1500))
    path = tmp_path / "text" / "made_up.txt"
    path.parent.mkdir()
    path.write_text("\n\n".join(lines) + "\n", encoding="utf-8")
    return path


# --- what ships ---------------------------------------------------------------------------------------------------


def test_recorded_bits_per_byte_is_reproduced_from_the_shipped_files(excerpt: str) -> None:
    recorded = METRICS["bits_per_byte"]["heldout.txt"]
    measured = bits_per_byte(BUNDLED, excerpt)
    assert measured == pytest.approx(recorded["model"], abs=0.01)
    assert measured < recorded["trigram"] < recorded["unigram"]
    whole = METRICS["bits_per_byte"]["heldout_split"]
    assert whole["model"] < whole["trigram"] < whole["unigram"]


def test_model_beats_a_unigram_that_has_seen_the_answer(excerpt: str) -> None:
    data = excerpt.encode("utf-8")
    oracle = -sum(n * math.log2(n / len(data)) for n in Counter(data).values()) / len(data)
    assert bits_per_byte(BUNDLED, excerpt) < oracle - 1


def test_leaving_out_any_layer_costs_bits(model: LlamaForCausalLM, excerpt: str) -> None:
    """Every layer was trained, the layers that a sweep takes one by one included."""
    ids = torch.tensor(TOKENIZER.encode(excerpt).ids[:1024])
    layers = list(model.model.layers)
    intact = sequence_nats(model, ids, model.config.bos_token_id)
    try:
        for left_out in range(len(layers)):
            model.model.layers = torch.nn.ModuleList(layers[:left_out] + layers[left_out + 1 :])
            model.config.num_hidden_layers = len(layers) - 1
            assert sequence_nats(model, ids, model.config.bos_token_id) > 1.005 * intact
    finally:
        model.model.layers, model.config.num_hidden_layers = (torch.nn.ModuleList(layers), len(layers))


def test_folder_is_complete_small_and_finite() -> None:
    assert sum(file.stat().st_size for file in BUNDLED.rglob("*")) < 11.5e6
    config = json.loads((BUNDLED / "config.json").read_text(encoding="utf-8"))
    assert (config["model_type"], config["hidden_size"], config["head_dim"]) == ("llama", 256, 32)
    assert config["tie_word_embeddings"] is True
    for name in ("MODEL_CARD.md", "heldout.txt", "loss_curve.png"):
        assert (BUNDLED / name).stat().st_size > 0
    with safe_open(BUNDLED / "model.safetensors", "pt") as file:
        for name in file.keys():  # noqa: SIM118 -- safe_open is no mapping
            tensor = file.get_tensor(name)
            assert tensor.dtype == torch.float16
            assert tensor.isfinite().all()


def test_model_card_states_the_recorded_figures_and_no_machine() -> None:
    card = (BUNDLED / "MODEL_CARD.md").read_text(encoding="utf-8")
    for part in ("heldout_split", "heldout.txt"):
        for value in METRICS["bits_per_byte"][part].values():
            assert f"{value:.3f}" in card
    for value in (METRICS["steps"], METRICS["parameters"], METRICS["tokens_seen"], METRICS["training_tokens"]):
        assert f"{value:,}" in card
    assert not re.search(r"/work|/tmp|/home|/root", card)


def test_transformers_tokenizer_agrees_with_the_file(excerpt: str) -> None:
    automatic = AutoTokenizer.from_pretrained(BUNDLED)
    assert automatic(excerpt, add_special_tokens=False)["input_ids"] == TOKENIZER.encode(excerpt).ids
    assert automatic.bos_token_id == json.loads((BUNDLED / "config.json").read_text(encoding="utf-8"))["bos_token_id"]


@given(st.text())
@settings(max_examples=300, deadline=None)
def test_tokenizer_round_trips_any_text(text: str) -> None:
    assert TOKENIZER.decode(TOKENIZER.encode(text).ids, skip_special_tokens=False) == text


# --- the definition of bits per byte --------------------------------------------------------------------------------


@pytest.mark.parametrize(("window", "stride"), [(8, 8), (8, 3), (8, 1), (16, 5)])
@pytest.mark.parametrize("count", [1, 7, 8, 9, 21])
def test_sliding_windows_score_every_token_once_with_its_context(window: int, stride: int, count: int) -> None:
    """Against a loop that scores one token at a time from the context the definition gives it."""
    torch.manual_seed(0)
    tiny = LlamaForCausalLM(
        LlamaConfig(vocab_size=20, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    ).eval()
    ids = torch.randint(1, 20, (count,))
    expected, length, scored = 0.0, min(window, count), 0
    while scored < count:
        end = length if scored == 0 else min(scored + stride, count)
        for position in range(scored, end):
            context = torch.cat([torch.tensor([0]), ids[end - length : position]])
            with torch.no_grad():
                logits = tiny(input_ids=context[None]).logits[0, -1]
            expected -= logits.log_softmax(-1)[ids[position]].item()
        scored = end
    assert sequence_nats(tiny, ids, 0, window, stride, batch_size=2) == pytest.approx(expected, rel=1e-5)


def test_documents_add_up(excerpt: str) -> None:
    parts = excerpt[:1500], excerpt[1500:2000]
    sizes = [len(part.encode("utf-8")) for part in parts]
    alone = [bits_per_byte(BUNDLED, part) for part in parts]
    together = sum(bits * size for bits, size in zip(alone, sizes, strict=True)) / sum(sizes)
    assert bits_per_byte(BUNDLED, parts) == pytest.approx(together, rel=1e-6)


def test_bad_input_to_bits_per_byte_is_one_clear_sentence(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not empty"):
        bits_per_byte(BUNDLED, "")
    with pytest.raises(ValueError, match=r"no config\.json"):
        bits_per_byte(tmp_path, "text")
    with pytest.raises(ValueError, match="stride"):
        sequence_nats(torch.nn.Identity(), torch.tensor([1]), 0, window=4, stride=5)


# --- the script -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [1, 2, 3])
def test_ngram_probabilities_match_a_dictionary_and_sum_to_one(tool, order: int) -> None:
    train, text = b"the cat sat on the mat. the end", b"the cow\xff"
    fitted = tool.ngrams.WittenBell([train], order)

    def probability(context: bytes, byte: int) -> float:
        lower = probability(context[1:], byte) if context else 1 / 256
        n = len(context)
        followers = Counter(train[i + n] for i in range(len(train) - n) if train[i : i + n] == context)
        seen = sum(followers.values())
        return (followers[byte] + len(followers) * lower) / (seen + len(followers)) if seen else lower

    bits = -sum(math.log2(probability(text[max(0, i - order + 1) : i], text[i])) for i in range(len(text)))
    got = fitted._probabilities(text)
    assert -np.log2(got).sum() == pytest.approx(bits)
    whole = sum(fitted._probabilities(b"th" + bytes([byte]))[2] for byte in range(256))
    assert whole == pytest.approx(1)


def test_split_covers_the_file_once_at_paragraph_starts(tool, text_file: Path) -> None:
    (document,) = tool.corpus.read_documents([text_file])
    assert document.train + document.validation + document.heldout == text_file.read_text(encoding="utf-8")
    assert document.train.endswith("\n\n")
    assert document.validation.endswith("\n\n")
    assert len(document.heldout) == pytest.approx(0.05 * text_file.stat().st_size, rel=0.1)


def test_undone_merges_spell_the_same_text(tool, excerpt: str) -> None:
    ids = np.array(TOKENIZER.encode(excerpt).ids)
    split = tool.corpus.undo_merges(ids, tool.corpus.merge_parts(TOKENIZER), 0.3, np.random.default_rng(0))
    assert len(split) > 1.2 * len(ids)
    assert TOKENIZER.decode(split.tolist()) == excerpt


def test_smoke_run_exports_a_folder_that_measures_as_it_says(tool, text_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    tool.main(["--smoke", "--text", str(text_file.parent), "--run", str(tmp_path / "run"), "--out", str(out)])
    metrics = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    short = (out / "heldout.txt").read_bytes().decode("utf-8")
    assert bits_per_byte(out, short) == pytest.approx(metrics["bits_per_byte"]["heldout.txt"]["model"], abs=1e-3)
    assert short.strip() in text_file.read_text(encoding="utf-8")[-4000:]
    assert metrics["steps"] in (5, 10)
    produced = {file.name for file in out.iterdir()}
    assert produced == {file.name for file in BUNDLED.iterdir()} - {"MODEL_CARD.md"}


def test_interrupted_run_goes_on_to_the_same_weights(tool, text_file: Path, tmp_path: Path, monkeypatch) -> None:
    arguments = ["--smoke", "--text", str(text_file), "--run"]
    tool.main([*arguments, str(tmp_path / "whole")])

    batch = tool.corpus.Windows.batch
    with monkeypatch.context() as patch:

        def interrupting(self, step: int) -> np.ndarray:
            if step == 6:
                os.kill(os.getpid(), signal.SIGINT)  # as Ctrl-C: the step is finished, then all is saved
            return batch(self, step)

        patch.setattr(tool.corpus.Windows, "batch", interrupting)
        with pytest.raises(SystemExit, match="Stopped and saved"):
            tool.main([*arguments, str(tmp_path / "halves")])
    tool.main([*arguments, str(tmp_path / "halves")])

    whole, halves = (torch.load(tmp_path / name / "last.pt", weights_only=True) for name in ("whole", "halves"))
    assert whole["step"] == halves["step"] == 10
    for name, tensor in whole["model"].items():
        assert torch.equal(tensor, halves["model"][name]), name
    logs = [
        [json.loads(line)["validation_bits_per_byte"] for line in (tmp_path / name / "log.jsonl").open()]
        for name in ("whole", "halves")
    ]
    assert logs[0] == logs[1]


def test_bad_input_to_the_script_is_one_clear_sentence(tool, text_file: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty.txt"
    empty.touch()
    binary = tmp_path / "binary.txt"
    binary.write_bytes(b"\xff\xfe text")
    bare = tmp_path / "bare"
    bare.mkdir()
    cases = [
        ([tmp_path / "absent"], "does not exist"),
        ([empty], "is empty"),
        ([binary], "not UTF-8"),
        ([bare], r"no \*.txt"),
        ([text_file, "--vocab-size", "100"], "vocab_size=100"),
        ([text_file, "--batch-size", "100000"], "fewer than 100000 windows"),
        ([text_file, "--head-dim", "7"], "not a multiple"),
    ]
    for number, (text, message) in enumerate(cases):
        with pytest.raises(SystemExit, match=message):
            tool.main(["--smoke", "--run", str(tmp_path / f"run{number}"), "--text", *map(str, text)])
    tool.main(["--smoke", "--run", str(tmp_path / "run"), "--text", str(text_file)])
    with pytest.raises(SystemExit, match="other settings"):
        tool.main(["--smoke", "--run", str(tmp_path / "run"), "--text", str(text_file), "--seed", "1"])


def test_help_is_clean() -> None:
    done = subprocess.run(
        [sys.executable, str(TOOLS / "pretrain_lm.py"), "--help"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0
    assert done.stderr == ""
    assert "--minutes" in done.stdout
    assert "None" not in done.stdout
