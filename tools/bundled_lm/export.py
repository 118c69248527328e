"""From a run's best checkpoint to the folder that ships: float16 weights, tokenizer, excerpt, curve and figures."""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path

from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers.utils import logging

from bundled_lm.corpus import BOS, Document, excerpt
from bundled_lm.files import atomic
from bundled_lm.model import build_model
from bundled_lm.ngrams import WittenBell
from bundled_lm.settings import Settings
from frozenllm.core.weights.heldout import bits_per_byte

EXCERPT_CHARACTERS = 12_000


def export(settings: Settings, documents: list[Document], tokenizer: Tokenizer, run: Path, out: Path) -> dict:
    """Writes the best checkpoint as a transformers-layout directory and measures it as it is shipped.

    Args:
        settings: of the run.
        documents: the split text; only held-out parts are measured on, only training parts fit the baselines.
        tokenizer: of the run.
        run: folder of the run, with at least one validation behind it.
        out: folder to write; its files are replaced one by one, atomically, and other files in it are left alone.

    Returns:
        What `metrics.json` holds.
    """
    if not (run / "best.safetensors").exists():
        raise ValueError(f"{run} has no validated checkpoint yet; train for at least {settings.eval_every} steps.")
    log = [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    best = min(log, key=lambda record: record["validation_bits_per_byte"])
    logging.disable_progress_bar()
    model = build_model(settings, tokenizer.token_to_id(BOS))
    model.model.load_state_dict(load_file(run / "best.safetensors"))
    model.tie_weights()
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        draft = Path(folder)
        tokenizer.save(str(draft / "tokenizer.json"))
        names = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": BOS, "clean_up_tokenization_spaces": False}
        (draft / "tokenizer_config.json").write_text(json.dumps(names, indent=2) + "\n", encoding="utf-8")
        model.save_pretrained(draft)
        exact = bits_per_byte(draft, [d.heldout for d in documents])
        model.half().save_pretrained(draft)
        (draft / "generation_config.json").unlink(missing_ok=True)  # nothing in it but the start token

        short = excerpt(documents, EXCERPT_CHARACTERS)
        (draft / "heldout.txt").write_text(short, encoding="utf-8", newline="")
        draw_loss_curve(log, draft / "loss_curve.png")
        metrics = {
            "bits_per_byte": _figures(draft, documents, short),
            "heldout_split_in_float32": round(exact, 4),
            "validation_bits_per_byte": round(best["validation_bits_per_byte"], 4),
            "parameters": model.num_parameters(),
            "steps": best["step"],
            "tokens_seen": best["step"] * settings.batch_size * settings.window,
            "training_tokens": sum(len(tokenizer.encode(d.train).ids) for d in documents),
            "minutes": round(best["seconds"] / 60, 1),
            "bytes": {
                part: sum(len(getattr(d, part).encode("utf-8")) for d in documents)
                for part in ("train", "validation", "heldout")
            },
            "text_sha256": {d.name: d.sha256 for d in documents},
            "settings": asdict(settings),
        }
        (draft / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
        for file in sorted(draft.iterdir()):
            with atomic(out / file.name) as final:
                shutil.copyfile(file, final)
    return metrics


def _figures(directory: Path, documents: list[Document], short: str) -> dict:
    """Bits per byte of the model and of the n-grams, on the held-out split and on the excerpt that ships."""
    trained = [d.train.encode("utf-8") for d in documents]
    baselines = {"unigram": WittenBell(trained, order=1), "trigram": WittenBell(trained, order=3)}
    figures = {}
    for part, texts in (("heldout_split", [d.heldout for d in documents]), ("heldout.txt", [short])):
        figures[part] = {"model": round(bits_per_byte(directory, texts), 4)}
        figures[part] |= {name: round(baseline.bits_per_byte(texts), 4) for name, baseline in baselines.items()}
    return figures


def draw_loss_curve(log: list[dict], path: Path) -> None:
    """Plots training loss (nats per token) and validation bits per byte against the step."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    steps = [record["step"] for record in log]
    figure, left = plt.subplots(figsize=(7, 4), dpi=80, layout="constrained")
    (one,) = left.plot(steps, [record["train_nats_per_token"] for record in log], color="tab:blue")
    left.set(xlabel="step", ylabel="training loss, nats per token")
    right = left.twinx()
    (two,) = right.plot(steps, [record["validation_bits_per_byte"] for record in log], color="tab:orange")
    right.set(ylabel="validation, bits per byte")
    left.legend([one, two], ["training (left; with dropout and split tokens)", "validation (right)"], frameon=False)
    figure.savefig(path, metadata={"Software": None})
    plt.close(figure)
