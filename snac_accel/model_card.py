"""The model card: README.md of an export, with metadata that the Hub understands, made from what is known about a run."""

from __future__ import annotations

import importlib.metadata
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .config import describe_model, to_yaml

PLACEHOLDER = "path/to/this/folder"  # in the snippet, where no repository is known
SNAC = "https://github.com/hubertsiuzdak/snac"
PACKAGES = ("snac", "torch", "accelerate", "datasets", "huggingface_hub")
PRIVATE_SECTIONS = {"paths", "hub", "tracking", "checkpoint", "distributed", "stopping"}
TASK = "audio-to-audio"


@dataclass(frozen=True)
class CardFacts:
    """What a card says. What is None is not known, and said so or left out."""

    model: Mapping[str, Any]  # arguments of snac.SNAC
    config: Mapping[str, Any] = field(default_factory=dict)  # the whole configuration of the run
    repository: str | None = None
    step: int | None = None
    averaged: bool = False
    codes_unchanged: bool | None = None  # against what the run started from
    results: Mapping[str, float] = field(default_factory=dict)  # held-out metrics by name
    samples: Sequence[str] = ()  # audio files, relative to the card
    has_pack: str | None = None  # where the training pack is

    @property
    def title(self) -> str:
        """What the model is called."""
        name = self.repository or str(_of(self.config, "paths", "run_name") or "snac")
        return name.rpartition("/")[2]

    @property
    def base_model(self) -> str | None:
        """Hub id of what the run started from."""
        source = _of(self.config, "training", "init_from")
        return source.partition("@")[0] if source and is_hub_id(source.partition("@")[0]) else None

    @property
    def datasets(self) -> list[str]:
        """Hub ids of what was trained on."""
        return list(dict.fromkeys(filter(is_hub_id, _sources(self.config))))

    @property
    def license(self) -> str | None:
        """Licence of the weights."""
        return _of(self.config, "hub", "license")


def is_hub_id(name: str) -> bool:
    """Whether a name may be owner/name on the Hub and is nothing on this machine."""
    return re.fullmatch(r"[\w][\w.-]*/[\w][\w.-]*", name) is not None and not Path(name).exists()


def write_card(facts: CardFacts) -> str:
    """The card as Markdown, metadata first."""
    parts = [_title(facts), _use(facts), _codes(facts), _results(facts), _samples(facts), _training(facts), _licence(facts)]
    return f"---\n{metadata(facts).to_yaml()}\n---\n\n" + "\n\n".join(part for part in parts if part) + "\n"


def metadata(facts: CardFacts) -> Any:
    """`huggingface_hub.ModelCardData`, which checks what it is given."""
    from huggingface_hub import EvalResult, ModelCardData

    rate, facts_of_model = facts.model["sampling_rate"], describe_model(facts.model)
    results = [
        EvalResult(
            task_type=TASK,
            dataset_type=facts.datasets[0] if facts.datasets else "held-out",
            dataset_name="held-out clips of the run",
            metric_type=name,
            metric_value=round(value, 6),
        )
        for name, value in facts.results.items()
    ]
    options: dict[str, Any] = {"eval_results": results, "model_name": facts.title} if results else {}
    if facts.base_model:
        options |= {"base_model": facts.base_model, "base_model_relation": "finetune"}
    if facts.codes_unchanged is not None:
        options["code_compatible_with_base_model"] = facts.codes_unchanged
    return ModelCardData(
        library_name="snac",
        pipeline_tag=TASK,
        license=facts.license,
        tags=["snac", "snac_accel", "audio", "neural-audio-codec", "audio-codec", f"{rate}hz"],
        datasets=facts.datasets or None,
        sampling_rate=rate,
        bitrate=round(facts_of_model.bitrate),
        **options,
    )


def _title(facts: CardFacts) -> str:
    about = describe_model(facts.model)
    rates = " / ".join(f"{rate:.4g}" for rate in about.token_rates)
    return (
        f"# {facts.title}\n\nA [SNAC]({SNAC}) neural audio codec for mono sound at {facts.model['sampling_rate']} Hz: "
        f"{len(about.token_rates)} levels of {rates} codes a second, {about.bitrate / 1000:.2f} kbit/s. "
        "Trained with `snac_accel`; the stock `snac` package loads it."
    )


def _use(facts: CardFacts) -> str:
    return f"""## Use

```bash
pip install snac
```

```python
import torch
from snac import SNAC

model = SNAC.from_pretrained("{facts.repository or PLACEHOLDER}").eval()
audio = torch.zeros(1, 1, {facts.model['sampling_rate']})  # (batch, 1, samples) at {facts.model['sampling_rate']} Hz
with torch.inference_mode():
    codes = model.encode(audio)  # a tensor of codes for each level, coarse to fine
    decoded = model.decode(codes)[..., : audio.shape[-1]]  # `decode` gives whole quanta
```"""


def _codes(facts: CardFacts) -> str:
    source = facts.base_model or "the model that it was fine-tuned from"
    if facts.codes_unchanged is None:
        text = "This model has codes of its own: language models built on the codes of another SNAC do not fit it."
    elif facts.codes_unchanged:
        text = (
            f"**Yes: the codes are those of {source}.** Encoder and quantizer are bit by bit the same, which was checked at "
            "the export, so language models built on its codes work with this decoder as they are."
        )
    else:
        text = f"**No: the codes differ from those of {source}.** Language models built on those do not fit this model."
    return f"## Are the codes compatible?\n\n{text}"


def _results(facts: CardFacts) -> str:
    if not facts.results:
        return ""
    rows = "\n".join(f"| {name} | {value:.4g} |" for name, value in facts.results.items())
    return f"## Results\n\nOn held-out clips, as the trainer measures them.\n\n| metric | value |\n|---|---|\n{rows}"


def _samples(facts: CardFacts) -> str:
    if not facts.samples:
        return ""
    prefix = f"https://huggingface.co/{facts.repository}/resolve/main/" if facts.repository and "/" in facts.repository else ""
    players = "\n".join(f'- {_plain(name)}<br><audio controls src="{prefix}{name}"></audio>' for name in facts.samples)
    return f"## Samples\n\n{players}"


def _training(facts: CardFacts) -> str:
    lines = [f"- step {facts.step}" if facts.step is not None else ""]
    lines.append("- moving average of the weights" if facts.averaged else "")
    if sources := [_plain(public_name(name)) for name in _sources(facts.config)]:
        lines.append(f"- data: {', '.join(f'`{name}`' for name in sources)}")
    if source := _of(facts.config, "training", "init_from"):
        lines.append(f"- started from `{_plain(public_name(source))}`")
    if frozen := _of(facts.config, "training", "freeze"):
        lines.append(f"- frozen: {', '.join(frozen)}")
    if facts.has_pack:
        lines.append(f"- discriminators, optimisers and schedules to fine-tune from: {facts.has_pack}")
    lines.append(f"- versions: {', '.join(_versions())}")
    text = "## Training\n\n" + "\n".join(filter(None, lines))
    if facts.config:
        settings = to_yaml(public_config(facts.config))
        text += f"\n\n<details><summary>Configuration</summary>\n\n```yaml\n{settings}```\n\n</details>"
    return text


def _licence(facts: CardFacts) -> str:
    text = f"These weights: `{facts.license}`." if facts.license else "No licence of these weights is stated (`hub.license`)."
    return f"## Licence\n\n{text} What they were trained on has licences of its own. The `snac` package is under the MIT licence."


def public_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration without what is nobody's business: folders of this machine, trackers, the Hub."""
    return {section: _public(settings) for section, settings in config.items() if section not in PRIVATE_SECTIONS}


def _public(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _public(inner) for key, inner in value.items() if key != "cache_dir"}
    if isinstance(value, (list, tuple)):
        return [_public(inner) for inner in value]
    return public_name(value) if isinstance(value, str) else value


def public_name(name: str) -> str:
    """A name as it may be published: of a path on this machine its last part alone."""
    if "://" not in name and ("/" in name or "\\" in name) and not is_hub_id(name.partition("@")[0]):
        return re.split(r"[/\\]", name.rstrip("/\\"))[-1]
    return name


def held_out_results(row: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of a validation row of the log: `validation/NAME`, finite ones only."""
    names = {name: name.removeprefix("validation/") for name in row if name.startswith("validation/")}
    return {
        short: float(row[name])
        for name, short in names.items()
        if "/" not in short and isinstance(row[name], (int, float)) and math.isfinite(row[name])
    }


def _versions() -> Iterator[str]:
    for name in ("snac_accel", *PACKAGES):
        try:
            yield f"{name} {importlib.metadata.version(name)}"
        except importlib.metadata.PackageNotFoundError:
            continue


def _sources(config: Mapping[str, Any]) -> list[str]:
    sources = _of(config, "data", "sources") or [config.get("data") or {}]
    return [str(source["dataset_path"]) for source in sources if source.get("dataset_path")]


def _of(config: Mapping[str, Any], section: str, name: str) -> Any:
    return (config.get(section) or {}).get(name)


def _plain(text: str) -> str:
    """A name inside Markdown: nothing that would end a code span, a line or an element."""
    return re.sub(r"[`<>|\r\n]", "_", text)
