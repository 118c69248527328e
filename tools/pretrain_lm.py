"""Trains the small LLaMA-architecture language model that ships with `frozenllm-core` as `load_block("bundled")`.

A run is a folder; the same command continues a run that was killed or stopped with Ctrl-C. The learning rate follows
a cosine over the steps or the minutes allowed, whichever is further along. The exported folder holds float16 weights,
the tokenizer, a held-out excerpt, the loss curve, and bits per byte beside those of byte-level n-grams.

    python tools/pretrain_lm.py --text DIR --out packages/core/src/frozenllm/core/weights/bundled
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, fields, replace
from pathlib import Path

from bundled_lm.corpus import Document, read_documents, train_tokenizer
from bundled_lm.files import atomic
from bundled_lm.settings import SMOKE, Settings
from tokenizers import Tokenizer

SMOKE_STEPS = 10


def prepare_run(settings: Settings, documents: list[Document], run: Path) -> Tokenizer:
    """Creates the run folder with its settings and tokenizer, or checks that an existing one is of the same make."""
    make = {"settings": asdict(settings), "text_sha256": {d.name: d.sha256 for d in documents}}
    if (run / "run.json").exists():
        if json.loads((run / "run.json").read_text(encoding="utf-8")) != make:
            raise ValueError(f"{run} was started with other settings or another text; choose another --run.")
        return Tokenizer.from_file(str(run / "tokenizer.json"))
    tokenizer = train_tokenizer([d.train for d in documents], settings.vocab_size)
    run.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(run / "tokenizer.json"))
    with atomic(run / "run.json") as draft:  # last: its presence says that the folder is complete
        draft.write_text(json.dumps(make, indent=2) + "\n", encoding="utf-8")
    return tokenizer


def build_parser() -> argparse.ArgumentParser:
    """The command line: the options of a run, then one option per setting."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", nargs="+", required=True, metavar="PATH", help="text files, or folders of *.txt")
    parser.add_argument("--run", default="runs/pretrain_lm", help="run folder, continued if it exists (%(default)s)")
    parser.add_argument("--out", help="folder to export the best checkpoint to (none: no export)")
    parser.add_argument("--minutes", type=float, default=55.0, help="training time in all, 0: no limit (%(default)s)")
    parser.add_argument("--steps", type=int, default=0, help="training steps in all, 0: no limit (%(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (%(default)s)")
    parser.add_argument("--export-only", action="store_true", help="train nothing, export the best checkpoint so far")
    parser.add_argument("--smoke", action="store_true", help=f"a tiny model for {SMOKE_STEPS} steps: seconds")
    group = parser.add_argument_group("settings")
    for setting in fields(Settings):
        group.add_argument(
            f"--{setting.name.replace('_', '-')}",
            type=type(setting.default),
            metavar=type(setting.default).__name__.upper(),
            help=f"{setting.metadata['help']} ({setting.default})",
        )
    return parser


def main(argv: list[str] | None = None) -> None:
    """Runs the command line; bad input ends in one sentence."""
    parser = build_parser()
    arguments = parser.parse_args(argv)
    given = {s.name: value for s in fields(Settings) if (value := getattr(arguments, s.name)) is not None}
    minutes, steps = (0.0, SMOKE_STEPS) if arguments.smoke else (arguments.minutes, arguments.steps)
    if minutes <= 0 and steps <= 0:
        parser.error("give --minutes or --steps, else the training never ends")
    if arguments.threads < 1:
        parser.error(f"--threads must be 1 or more, not {arguments.threads}")
    # Here, not above: these take seconds to import, and neither --help nor a mistyped option should wait for them.
    import torch
    from bundled_lm.export import export
    from bundled_lm.training import Trainer

    torch.set_num_threads(arguments.threads)
    try:
        settings = replace(SMOKE if arguments.smoke else Settings(), **given)
        documents, run = read_documents(arguments.text), Path(arguments.run)
        tokenizer = prepare_run(settings, documents, run)
        if not arguments.export_only:
            Trainer(settings, documents, tokenizer, run).fit(minutes, steps)
        if arguments.out:
            metrics = export(settings, documents, tokenizer, run, Path(arguments.out))
            print(json.dumps(metrics["bits_per_byte"], indent=2))
    except (ValueError, OSError) as error:
        sys.exit(f"{parser.prog}: error: {error}")


if __name__ == "__main__":
    main()
