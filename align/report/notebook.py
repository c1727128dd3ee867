"""Helpers for notebooks and for `align inspect`: a run's tables as pandas frames, and a pair's tokens with their mask.

    run = open_run("runs/quickstart")
    run.funnel()
    run.pair_tokens(stage=1, number=0)
    evaluation(run).meter

Importing this loads neither pandas nor torch; the methods do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from align.core.artifact import Artifact, Manifest
from align.core.chat import Chat
from align.core.errors import UserError
from align.core.rows import Preference
from align.report.artifacts import ROLES, StepRecord, at, columns_of, folder_of, num_stages, read_recipe, record, scan
from align.report.evaluation import gather_best_of_n
from align.report.suites import gather_suites, run_steps

if TYPE_CHECKING:
    import pandas as pd

SIDES = ("chosen", "rejected")


def open_run(path: str | Path) -> Run:
    """A run folder to look at.

    Raises:
        UserError: no finished step there.
    """
    run = Run(Path(path))
    if not any(step.manifest for step in run.steps()):
        raise UserError(f"{path}: no finished step there; give the folder of a run, such as runs/quickstart")
    return run


@dataclass(frozen=True)
class Run:
    """A run folder; every method reads finished artifacts and changes nothing."""

    folder: Path

    def steps(self) -> list[StepRecord]:
        """All steps in their order, finished or not."""
        return [record(self.folder, name) for name in run_steps(self.folder, read_recipe(self.folder))]

    def manifest(self, step: str) -> Manifest:
        """The manifest of a finished step, such as `stage1.pair`."""
        return self._artifact(step).manifest

    def _artifact(self, step: str) -> Artifact:
        found = record(self.folder, step)
        if found.manifest is None:
            finished = ", ".join(s.name for s in self.steps() if s.manifest)
            raise UserError(f"{self.folder}: step {step} is {found.state}; finished are {finished}")
        return Artifact(found.folder)

    def funnel(self) -> pd.DataFrame:
        """One row per finished step: asked, kept, rejected, share kept, seconds, and the reasons as text."""
        import pandas as pd

        rows = []
        for step in self.steps():
            if (m := step.manifest) is not None:
                reasons = sorted(m.rejects.items(), key=lambda item: (-item[1], item[0]))
                rows.append(
                    {
                        "step": step.name,
                        "asked": m.asked,
                        "kept": m.rows,
                        "rejected": m.asked - m.rows,
                        "share": round(m.rows / m.asked, 4) if m.asked else None,
                        "seconds": m.seconds,
                        "reasons": ", ".join(f"{reason} {n}" for reason, n in reasons),
                    }
                )
        return pd.DataFrame(rows)

    def reasons(self) -> pd.DataFrame:
        """One row per step and reason for a reject, with how often it occurred."""
        import pandas as pd

        found = [
            {"step": step.name, "reason": reason, "rejects": n}
            for step in self.steps()
            if step.manifest
            for reason, n in sorted(step.manifest.rejects.items(), key=lambda item: -item[1])
        ]
        return pd.DataFrame(found, columns=["step", "reason", "rejects"])

    def taxonomy(self) -> pd.DataFrame:
        """All nodes of the tree with their counts: path, name, level, count, id, parent_id."""
        import pandas as pd

        folder = self._artifact("taxonomy").folder
        columns = ["path", "name", "level", "count", "id", "parent_id"]
        return pd.DataFrame(list(scan(folder, columns, "topics.parquet")), columns=columns)

    def rows(self, step: str) -> pd.DataFrame:
        """All rows of a finished step."""
        import pandas as pd

        files = sorted(self._artifact(step).folder.glob("data/*.parquet"))
        return pd.concat([pd.read_parquet(file) for file in files], ignore_index=True)

    def rejects(self, step: str) -> pd.DataFrame:
        """All dropped rows of a finished step: id, reason, raw."""
        import pandas as pd

        columns = ["id", "reason", "raw"]
        return pd.DataFrame(list(scan(self._artifact(step).folder, columns, "rejects/*.parquet")), columns=columns)

    def history(self, step: str) -> pd.DataFrame:
        """What training logged, one row per optimizer step."""
        import pandas as pd

        return pd.DataFrame(self.manifest(step).metrics.get("history", []))

    def evaluation(self) -> pd.DataFrame:
        """The evaluation's table of models, intervals in columns such as `selector.low`; see also `evaluation`."""
        import pandas as pd

        return pd.json_normalize(self.manifest("eval").metrics.get("table", []))

    def scores(self, stage: int | str) -> pd.DataFrame:
        """One row per response of a stage (a number) or of `eval`, joined by response id.

        Columns: response_id, prompt_id, model, tokens, finish_reason, selector, validator (NaN where not scored).
        """
        import pandas as pd

        part = f"stage{stage}" if isinstance(stage, int) else stage
        names = [s.name for s in self.steps() if s.name.startswith(f"{part}.sample.") and s.manifest]
        if not names:
            raise UserError(f"{self.folder}: {part} has no finished samples")
        columns = ("id", "prompt_id", "model", "num_tokens", "finish_reason")
        table = pd.concat([pd.DataFrame(columns_of(self.folder / folder_of(n), columns)) for n in names], ignore_index=True)
        table = table.rename(columns={"id": "response_id", "num_tokens": "tokens"})
        for role in ROLES:
            folder = self._artifact(f"{part}.score.{role}").folder
            scores = pd.DataFrame(columns_of(folder, ("response_id", "score"))).rename(columns={"score": role})
            table = table.merge(scores, on="response_id", how="left", validate="one_to_one")
        return table

    def pair(self, stage: int, number: int) -> Preference:
        """The preference pair with this number, from 0, in the order of the artifact."""
        rows = self._artifact(f"stage{stage}.pair").rows(Preference)
        if not 0 <= number < len(rows):
            raise UserError(f"stage {stage} has pairs 0 to {len(rows) - 1}, not {number}")
        return rows[number]

    def chat(self, stage: int) -> Chat:
        """Tokenizer and template that the stage trained with: of the newest model at or before it in this run."""
        folders = [self.folder / f"stage{k}/train/model" for k in range(stage, 0, -1)] + [self.folder / "sft/train/model"]
        for folder in folders:
            if (folder / "tokenizer_config.json").is_file():
                return Chat.load(folder)
        raise UserError(f"{self.folder}: no model up to stage {stage}, so there is no tokenizer to show tokens with")

    def pair_tokens(self, stage: int, number: int, chat: Chat | None = None) -> pd.DataFrame:
        """A pair token by token, as the trainer sees it.

        Prompt ids come from the chat template, completion ids are the sampled ones, and `trained` is the completion mask
        of the batch that the trainer would build.

        Returns:
            Columns row (chosen or rejected), position, token_id, token, part (prompt, chosen or rejected), trained.
        """
        import pandas as pd

        from align.packing.separate import separate_batch

        pair, chat = self.pair(stage, number), chat or self.chat(stage)
        prompt = chat.prompt_ids(pair.prompt)
        completions = [pair.chosen_token_ids, pair.rejected_token_ids]
        batch = separate_batch([prompt, prompt], completions, pad_id=chat.stop_ids[0])
        rows = []
        for i, side in enumerate(SIDES):
            length = int(batch["attention_mask"][i].sum())
            ids = batch["input_ids"][i, :length].tolist()
            mask = batch["completion_mask"][i, :length].tolist()
            for place, (token_id, token, trained) in enumerate(zip(ids, token_texts(chat, ids), mask, strict=True)):
                part = side if place >= len(prompt) else "prompt"
                rows.append((side, place, token_id, token, part, trained))
        return pd.DataFrame(rows, columns=["row", "position", "token_id", "token", "part", "trained"])

    def pair_html(self, stage: int, number: int, chat: Chat | None = None) -> Markup:
        """`pair_tokens` as HTML for a notebook: trained tokens are shaded, the others pale; hover shows ids."""
        table = self.pair_tokens(stage, number, chat)
        parts = [Markup('<div style="font-family:ui-monospace,monospace;line-height:1.9;overflow-wrap:anywhere">')]
        for side in SIDES:
            parts.append(Markup("<p><b>{}</b></p><p>").format(side))
            color = "47,125,81" if side == "chosen" else "181,72,47"
            for line in table[table.row == side].itertuples():
                style = f"background:rgba({color},.25)" if line.trained else "opacity:.55"
                parts.append(
                    Markup('<span style="{}" title="id {}, position {}">{}</span><wbr>').format(
                        style, line.token_id, line.position, visible(line.token)
                    )
                )
            parts.append(Markup("</p>"))
        return Markup("").join([*parts, Markup("</div>")])


@dataclass(frozen=True)
class EvaluationTables:
    """What the evaluation found, as frames with intervals in columns such as `gold_gain.low`; empty where a part is missing.

    Attributes:
        models: one row for each model.
        wins: by reward model and model, `win_rate` in [0, 1] and `length.length_controlled.mean` in percent.
        meter: one row for each checkpoint, in the order of training.
        best_of_n: by stage, proxy and n.
        suites: by suite, metric and model, with `change` from the suite's first model and `failed` by reason.
    """

    models: pd.DataFrame
    wins: pd.DataFrame
    meter: pd.DataFrame
    best_of_n: pd.DataFrame
    suites: pd.DataFrame


def evaluation(run: Run) -> EvaluationTables:
    """All tables of the evaluation.

    Raises:
        UserError: the step eval has not finished.
    """
    import pandas as pd

    recipe, found = read_recipe(run.folder), run.manifest("eval").metrics
    curves = gather_best_of_n(run.folder, num_stages(run.folder, recipe))
    suites = [
        {"suite": suite.name, "metric": metric, "model": model, **values}
        for suite in gather_suites(run.folder, recipe)
        for metric, of in (at(suite.metrics, "metrics") or {}).items()
        for model, values in of.items()
    ]
    for row in suites:
        row["failed"] = ", ".join(f"{reason} {count}" for reason, count in row["failed"].items())
        row["change"] = row["change"] or {}
        del row["categories"]
    return EvaluationTables(
        models=run.evaluation(),
        wins=pd.json_normalize(found.get("wins", [])),
        meter=pd.json_normalize(at(found, "meter", "points") or []),
        best_of_n=pd.DataFrame([{"stage": stage, **row} for stage, rows in curves.items() for row in rows]),
        suites=pd.json_normalize(suites),
    )


def visible(token: str) -> str:
    """A token's text with its white space made visible."""
    return token.replace("\n", "⏎").replace("\t", "⇥").replace(" ", "·") or "∅"


def token_texts(chat: Chat, ids: Sequence[int]) -> list[str]:
    """Each token's text; a token that holds part of a character is shown by its bytes, such as `<EB-B9>`."""
    names = chat.tokenizer.convert_ids_to_tokens(list(ids))
    texts = []
    for token_id, name in zip(ids, names, strict=True):
        text = str(chat.tokenizer.decode([token_id]))
        known = _byte_characters()
        if "\ufffd" in text and name and all(char in known for char in name):
            text = f"<{'-'.join(f'{known[char]:02X}' for char in name)}>"
        texts.append(text if text else str(name))
    return texts


def _byte_characters() -> dict[str, int]:
    """The characters that stand for bytes in byte-level vocabularies (GPT-2's table), printable ones for themselves."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


def render_pair_text(run: Run, stage: int, number: int, chat: Chat | None = None) -> str:
    """A pair for the terminal: scores, then each side's tokens, `*` before those that are trained on."""
    pair = run.pair(stage, number)
    lines = [f"stage {stage}, pair {number}: {pair.id}", f"prompt {pair.prompt_id}, agreement {pair.agreement:.2f}"]
    table: Any = run.pair_tokens(stage, number, chat)
    prompt = table[(table.row == "chosen") & (table.part == "prompt")]
    lines += ["", f"prompt, {len(prompt)} tokens, not trained on", *_token_lines(prompt)]
    for side in SIDES:
        part = table[(table.row == side) & (table.part == side)]
        scores = ", ".join(f"{role} {getattr(pair, f'{role}_{side}'):.3f}" for role in ROLES)
        model = getattr(pair, f"{side}_model")
        head = f"{side}, {len(part)} tokens, {int(part.trained.sum())} trained on, from {model}; {scores}"
        lines += ["", head, *_token_lines(part)]
    return "\n".join(lines) + "\n"


def _token_lines(table: Any) -> list[str]:
    return [
        f"{'*' if line.trained else ' '} {line.position:5d} {line.token_id:7d}  {visible(line.token)}"
        for line in table.itertuples()
    ]
