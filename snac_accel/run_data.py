"""The data of a run: its sources opened and mixed, what the ranks must agree on, and which order is promised."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .config import SourceSettings, TrainingConfig
from .dataset import AudioDataset, Mixture, ValidationClips
from .dataset.parquet import ParquetClips
from .errors import CheckpointError, ConfigError, DataError
from .seeds import derive_seed


def open_training(config: TrainingConfig, source: SourceSettings, number: int) -> AudioDataset:
    """Open source `number` of the training data; each has an order and windows of its own."""
    data, seed = config.data, config.training.seed
    return AudioDataset(
        source.dataset_path,
        config.model.sampling_rate,
        split=source.split or data.split,
        streaming=bool(source.streaming),
        audio_column=source.audio_column or data.audio_column,
        configuration=source.configuration,
        revision=source.revision,
        segment_samples=config.segment_samples,
        seed=derive_seed(seed, "source", number) if number else seed,
        gain_db=data.gain_db,
        min_clip_seconds=data.min_clip_seconds,
        speaker_column=source.speaker_column,
        shuffle_buffer=data.shuffle_buffer,
        cache_dir=data.cache_dir,
        cache_gigabytes=data.cache_gigabytes,
        channels=data.channels,
        min_loudness=data.min_loudness,
        window_tries=data.window_tries,
        loudness=data.loudness,
        random_polarity=data.random_polarity,
        random_phase=data.random_phase,
    )


def open_validation(config: TrainingConfig) -> list[AudioDataset]:
    """Open the second source of validation.dataset_path, or the validation split of every source."""
    data, held_out = config.data, config.validation
    sources = data.each_source()
    if held_out.dataset_path is not None:
        sources = [sources[0].model_copy(update={"dataset_path": held_out.dataset_path, "revision": None})]
    return [
        AudioDataset(
            source.dataset_path,
            config.model.sampling_rate,
            split=held_out.split or source.split or data.split,
            streaming=bool(source.streaming),
            audio_column=source.audio_column or data.audio_column,
            configuration=held_out.configuration or source.configuration,
            revision=source.revision,
            segment_samples=config.segment_samples,
            speaker_column=source.speaker_column,
            cache_dir=data.cache_dir,
            cache_gigabytes=data.cache_gigabytes,
        )
        for source in sources
    ]


def mix(parts: Sequence[AudioDataset], sources: Sequence[SourceSettings], seed: int) -> Mixture:
    """Join the sources in the proportions of their weights; raises DataError if these are needed and missing."""
    weights = [source.weight for source in sources if source.weight is not None]
    for part, source in zip(parts, sources, strict=True):
        if not weights and len(parts) > 1 and not part.indexed:
            raise DataError(
                f"source {source.label!r} can only be read from beginning to end, so the number of its clips is not "
                "known: give every source of data.sources a weight"
            )
    return Mixture(parts, weights or None, [source.label for source in sources], seed)


def check_passes(config: TrainingConfig, mixture: Mixture, global_batch_size: int) -> None:
    """Raise ConfigError if the run would go through a source more often than its max_passes allows."""
    passes = mixture.passes(config.training.num_iterations * global_batch_size)
    for source, number in zip(config.data.each_source(), passes, strict=True):
        if source.max_passes is not None and number is not None and number > source.max_passes:
            raise ConfigError(
                f"source {source.label!r} would be gone through {number:.2f} times in this run, its max_passes is "
                f"{source.max_passes:g}: lower its weight, or training.num_iterations"
            )


def training_facts(training: Mixture) -> dict[str, str]:
    """What tells the clips of each source apart from others."""
    return {name: part.digest() for name, part in zip(training.names, training.parts, strict=True)}


def changed_data(manifest: Mapping[str, Any], training: Mixture) -> str | None:
    """The sentence about data that are not those of the checkpoint; None if they are, or it does not say."""
    before, now = manifest.get("data") or {}, training_facts(training)
    changed = [name for name in now if before and before.get(name) != now[name]]
    if not changed:
        return None
    first = changed[0]
    return (
        f"warning: the clips of {', '.join(changed)} are not those of the checkpoint ({before.get(first)} before, "
        f"{now[first]} now): in this epoch some may come twice and some not at all"
    )


def data_facts(training: Mixture, validation: ValidationClips | None) -> dict[str, str]:
    """What ranks compare to know that they have the same data."""
    facts = {f"the training data of {name!r}": digest for name, digest in training_facts(training).items()}
    if validation is not None:
        facts["the validation data"] = f"{len(validation)} clips ({' '.join(validation.names)[:200]})"
    return facts


def describe_data(mixture: Mixture, config: TrainingConfig, global_batch_size: int) -> list[str]:
    """Lines for the start of a run: what each source gives, and which order is promised for it."""
    windows = config.training.num_iterations * global_batch_size
    lines = []
    rows = zip(mixture.names, mixture.parts, mixture.shares, mixture.passes(windows), strict=True)
    for name, part, share, passes in rows:
        if passes is None:
            lines.append(
                f"data order of {name}: weaker: it can only be read from beginning to end, so every process reads all of "
                "it and a resumed run reads again what came before; the windows are the same all the same "
                "(`snac-accel prepare` makes shards that can be read anywhere)"
            )
        else:
            of_windows = f"{share:.1%} of the windows, " if len(mixture.parts) > 1 else ""
            lines.append(
                f"data: {name}, {len(part):,} clips, {of_windows}{passes:.3g} passes in this run; "
                "order: exact for any number of processes and workers, resumed where it stopped"
            )
            if isinstance(part.clips, ParquetClips) and (note := part.clips.cache_note(part.shuffle_buffer)):
                lines.append(f"warning: {name}: {note}")
    return lines


def data_promise(
    manifest: Mapping[str, Any], config: TrainingConfig, num_processes: int, global_batch_size: int
) -> str | None:
    """The sentence about the data of a run resumed with other processes; None if nothing changed.

    Raises CheckpointError if the clips per step changed for another reason: then it was hardly meant.
    """
    before, processes_before = manifest["global_batch_size"], manifest["world_size"]
    change = f"processes: {processes_before} before, {num_processes} now"
    if before == global_batch_size:
        if processes_before == num_processes:
            return None
        return f"data order: exact ({change}): the same windows in the same steps"
    per_process = before * num_processes == global_batch_size * processes_before
    if config.training.global_batch_size is not None or not per_process:
        raise CheckpointError(
            f"the checkpoint was made with {before} clips per step, this run has {global_batch_size}: "
            f"set training.global_batch_size to {before}"
        )
    return (
        f"data order: each clip at most once per epoch ({change}): the run goes on where the "
        f"stream was left, with {global_batch_size} clips per step instead of {before} "
        f"(training.global_batch_size = {before} would keep the steps the same)"
    )
