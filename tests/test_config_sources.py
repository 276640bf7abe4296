"""The sources of a mixture in the configuration: what is refused, and in which words."""

from __future__ import annotations

from typing import Any

import pytest

from snac_accel.config import ConfigError, load_config, to_dict, validate

ONE = {"dataset_path": "owner/speech"}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"sources": [{"weight": 1.0}]}, 'data.sources[0] = {"weight": 1.0}: should have dataset_path'),
        (
            {"sources": [ONE, {"dataset_path": "b", "weigth": 1}]},
            "data.sources[1].weigth = 1: unknown setting; did you mean weight?",
        ),
        ({"sources": [{**ONE, "zzz": 1}]}, "data.sources[0].zzz = 1: unknown setting; a source has dataset_path, name, weight"),
        ({"sources": [{**ONE, "weight": 0.0}]}, "data.sources[0].weight = 0.0: should be greater than 0"),
        ({"sources": [ONE, {"dataset_path": "other/speech"}]}, 'data.sources = "speech": is the name of two sources'),
        (
            {"sources": [{**ONE, "weight": 1.0}, {"dataset_path": "b"}]},
            "data.sources = [1.0, null]: should have a weight on each source, or on none",
        ),
        ({"sources": ["owner/speech"]}, 'data.sources[0] = "owner/speech": should be a section with settings'),
        ({"sources": ONE}, "data.sources = "),
    ],
)  # fmt: skip
def test_mistakes_get_one_line(data: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        validate({"data": data})
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_what_a_source_does_not_say_is_as_in_data() -> None:
    config = validate(
        {"data": {"sources": [{**ONE, "split": "clean"}, {"dataset_path": "b", "streaming": False}], "streaming": True}}
    )
    first, second = config.data.each_source()
    assert (first.split, first.streaming, first.audio_column) == ("clean", True, "audio")
    assert (second.split, second.streaming, second.label) == ("train", False, "b")
    assert validate(to_dict(config)) == config


def test_one_source_is_a_mixture_of_one() -> None:
    config = load_config("common_voice", overrides={"data": {"configuration": "de"}}, environment={})
    (source,) = config.data.each_source()
    assert (source.dataset_path, source.configuration) == ("fixie-ai/common_voice_17_0", "de")
    assert (source.streaming, source.speaker_column) == (True, "client_id")


def test_sources_are_given_as_json_on_the_command_line_and_in_the_environment() -> None:
    words = '[{"dataset_path": "a/music", "weight": 8}, {"dataset_path": "b/speech", "weight": 2}]'
    config = load_config(environment={"SNAC_ACCEL_DATA__SOURCES": words})
    assert [source.weight for source in config.data.each_source()] == [8.0, 2.0]


def test_no_source_is_validated_on_what_it_trains_on() -> None:
    sources = [ONE, {"dataset_path": "b", "split": "dev"}]
    with pytest.raises(ConfigError, match=r'validation.split = "dev": is what is trained on'):
        validate({"data": {"sources": sources}, "validation": {"split": "dev"}})
    with pytest.raises(ConfigError, match=r"should come with data.speaker_column"):
        some = [{**ONE, "speaker_column": "who"}, {"dataset_path": "b"}]
        validate({"data": {"sources": some}, "validation": {"by": "speaker"}})
