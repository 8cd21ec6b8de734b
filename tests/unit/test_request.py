"""The rules for requests: each wrong field is named with what would be right, all of them at once."""

from __future__ import annotations

import json
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tenkaigen_worker.errors import Code, InputError
from tenkaigen_worker.plugin.types import LoraUse
from tenkaigen_worker.request import NOT_YET, Names, Request, read_request, request_hash

STYLES = ("Standard", "Anime", "Line Art")
MODES = ("quality", "lightning-8")


def short(value: object) -> str:
    """Name a test's parameter, which may be very long."""
    return ascii(value)[:30]


def read(**fields: Any) -> Request:
    return read_request({"prompt": "A phoenix rising", **fields}, Names(STYLES, MODES))


def problems(**fields: Any) -> dict[str, str]:
    with pytest.raises(InputError) as error:
        read(**fields)
    assert str(error.value) == "; ".join(map(str, error.value.problems))
    return {problem.field: problem.message for problem in error.value.problems}


def test_a_prompt_is_enough() -> None:
    assert read().columns() == {"prompt": "A phoenix rising", "count": 1}


def test_all_fields() -> None:
    request = read(
        negative_prompt="blur",
        style="line_art",
        mode="Lightning 8",
        width=1024,
        height=768,
        seed=42,
        steps=8,
        guidance_scale=1,
        count=4,
        metadata={"order": 17},
        run_at="2026-11-30T18:00:00+02:00",
        expires_at="2026-12-01T00:00:00Z",
    )

    assert request.columns() == {
        "prompt": "A phoenix rising",
        "negative_prompt": "blur",
        "style": "Line Art",
        "mode": "lightning-8",
        "width": 1024,
        "height": 768,
        "seed": 42,
        "steps": 8,
        "guidance_scale": 1.0,
        "count": 4,
        "metadata": {"order": 17},
        "run_at": datetime(2026, 11, 30, 16, tzinfo=UTC),
        "expires_at": datetime(2026, 12, 1, tzinfo=UTC),
    }


def test_columns_of_a_row_pass() -> None:
    row = {
        "prompt": "x", "style": None, "width": None, "seed": 7, "guidance_scale": 4.5, "count": 1, "loras": [],
        "template_variables": {}, "metadata": {}, "strength": None, "priority": 3, "user_id": "x",
        "run_at": datetime(2026, 11, 30, tzinfo=UTC),
    }  # fmt: skip

    request = read_request(row, Names(STYLES, MODES))

    assert (request.seed, request.guidance_scale, request.style) == (7, 4.5, None)


def test_pages_send_numbers_as_text() -> None:
    request = read(width=" 512 ", seed="42", steps="+8", guidance_scale="3.5", count="2")

    assert (request.width, request.seed, request.steps) == (512, 42, 8)
    assert (request.guidance_scale, request.count) == (3.5, 2)


@pytest.mark.parametrize("blank", [None, "", "  ", [], {}])
def test_blank_means_not_asked_for(blank: Any) -> None:
    fields = {name: blank for name in (*Request.model_fields, *NOT_YET) if name != "prompt"}

    assert read(**fields) == read()


def test_unknown_fields_are_ignored() -> None:
    assert read(status="completed", user_id="me", sparkle=True) == read()


def test_everything_wrong_is_said_at_once() -> None:
    said = problems(prompt=" ", style="Anmie", mode="fast", width=1000, seed=-1, count=9, webhook_url="x")

    assert said == {
        "prompt": "must not be empty: say in words what to draw",
        "style": "there is no style 'Anmie'; did you mean Anime? The styles are: Standard, Anime, Line Art",
        "mode": "there is no mode 'fast'. The modes are: quality, lightning-8",
        "width": "must be a multiple of 16, such as 992 or 1008, not 1000",
        "seed": "must be a whole number from 0 to 4294967295, not -1",
        "count": "must be a whole number from 1 to 8, not 9",
        "webhook_url": "this version cannot do that yet: leave it out",
    }


@pytest.mark.parametrize("field", ["prompt", "negative_prompt"])
@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a\0b", "contains a NUL character"),
        ("a\ud800b", "half of a surrogate pair"),
        ("x" * 4001, "may have at most 4000 characters; this has 4001"),
        (5, "must be text, not 5"),
        (["a"], "must be text"),
        (True, "must be text, not True"),
    ],
    ids=short,
)
def test_text_that_cannot_be_used(field: str, text: Any, says: str) -> None:
    assert says in problems(**{field: text})[field]


def test_the_longest_text() -> None:
    assert len(read(prompt="💥" * 4000).prompt) == 4000


@pytest.mark.parametrize("name", [5, "x" * 100_000, "Ani\0me", "ani me 2"], ids=short)
def test_names_that_are_none(name: Any) -> None:
    said = problems(style=name, mode=name)

    assert said.keys() == {"style", "mode"}
    assert all(len(text) < 250 for text in said.values())


@pytest.mark.parametrize("field", ["width", "height"])
@pytest.mark.parametrize(
    ("side", "says"),
    [
        (1000, "such as 992 or 1008"),
        (4095, "such as 4080 or 4096"),
        (63, "from 64 to 4096, not 63"),
        (48, "from 64 to 4096, not 48"),
        (4112, "from 64 to 4096, not 4112"),
        (0, "from 64"),
        (-512, "from 64"),
        (512.0, "must be a whole number"),
        ("512px", "must be a whole number"),
        (True, "must be a whole number"),
        ([512], "must be a whole number"),
    ],
)
def test_sizes(field: str, side: Any, says: str) -> None:
    assert says in problems(**{field: side})[field]


def test_the_bounds_of_a_picture() -> None:
    assert read(width=2048, height=2048).width == 2048
    assert read(width=4096, height=1024).height == 1024

    said = problems(width=4096, height=2048)
    assert said == {
        "height": "4096 x 2048 is 8388608 pixels, and a picture may have at most 4194304, such as 2048 x 2048: "
        "with width 4096 it may be 1024"
    }


@pytest.mark.parametrize(
    "seed", [-1, 2**32, 10**30, "9" * 40, 1.5, float("nan"), "abc", "1e3", "٤٢", True, "0x10", {"a": 1}]
)
def test_seeds(seed: Any) -> None:
    assert problems(seed=seed)["seed"].startswith("must be a whole number from 0 to 4294967295, not ")


def test_the_first_and_the_last_seed() -> None:
    assert (read(seed=0).seed, read(seed=2**32 - 1).seed) == (0, 4294967295)


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("steps", 0, "from 1 to 100, not 0"),
        ("steps", 101, "from 1 to 100"),
        ("count", 0, "from 1 to 8"),
        ("guidance_scale", 0.5, "must be a number from 1 to 20, not 0.5"),
        ("guidance_scale", 20.1, "from 1 to 20"),
        ("guidance_scale", float("nan"), "from 1 to 20, not nan"),
        ("guidance_scale", float("inf"), "from 1 to 20"),
        ("guidance_scale", "4,5", "from 1 to 20"),
        ("guidance_scale", True, "from 1 to 20"),
        ("metadata", [1], "must be an object"),
        ("metadata", '{"a": 1}', "must be an object"),
        ("metadata", {"a": "\0"}, "contains a NUL character"),
        ("metadata", {"a\0": 1}, "contains a NUL character"),
        ("metadata", {"a": ["\ud800"]}, "half of a surrogate pair"),
        ("metadata", {"a": float("nan")}, "plain JSON"),
        ("metadata", {"a": {1}}, "plain JSON"),
        ("metadata", {"a": "x" * 16_384}, "may have at most 16384 bytes as JSON; this has 16393"),
        ("run_at", "tomorrow", "must be a date and time with its zone, such as 2026-11-30T18:00:00Z, not 'tomorrow'"),
        ("run_at", "2026-11-30T18:00:00", "with its zone"),
        ("run_at", 1790000000, "must be a date and time"),
        ("run_at", "0001-01-01T00:00:00+23:00", "must be a date and time"),
        ("expires_at", "soon", "must be a date and time"),
    ],
    ids=short,
)
def test_other_values(field: str, value: Any, says: str) -> None:
    assert says in problems(**{field: value})[field]


def test_deep_metadata() -> None:
    nested: dict[str, Any] = {}
    for _ in range(100_000):
        nested = {"a": nested}

    assert "nested" in problems(metadata=nested)["metadata"]


def test_an_escape_in_words_is_no_nul() -> None:
    assert read(metadata={"path": "\\u0000"}).metadata == {"path": "\\u0000"}


def test_nothing_expires_before_it_may_run() -> None:
    said = problems(run_at="2026-11-30T18:00:00Z", expires_at="2026-11-30T18:00:00Z")

    assert said == {"expires_at": "must be after run_at, which is 2026-11-30T18:00:00+00:00"}


@pytest.mark.parametrize("field", NOT_YET)
def test_what_cannot_be_done_yet_is_refused(field: str) -> None:
    with pytest.raises(InputError) as error:
        read(**{field: 0.5})

    assert error.value.code is Code.UNSUPPORTED
    assert [problem.field for problem in error.value.problems] == [field]


def test_something_wrong_besides_is_an_invalid_request() -> None:
    with pytest.raises(InputError) as error:
        read(webhook_url="x", seed=-1)

    assert error.value.code is Code.INVALID_REQUEST


LORAS = ("Ink", "Sumi")
TEMPLATES = ("Mug Wrap",)
UPLOAD = "upload:019dac38-5e55-74f3-8ac4-2ecd7f3d5ac2"


def read_more(**fields: Any) -> Request:
    return read_request(fields, Names(STYLES, MODES, LORAS, TEMPLATES))


def test_what_comes_from_a_row_is_what_went_into_it() -> None:
    """JSON columns come as text; what is checked may be inserted, and read again."""
    request = read_more(
        template="mug_wrap",
        variables={"animal": "fox", "legs": 4, "tail": None},
        style="Auto",
        loras=["ink", {"name": "SUMI", "weight": "0.5"}],
        franchise="sumi",
        reference=f" {UPLOAD.upper().replace('UPLOAD', 'upload')} ",
        mask="job:3f1c9a52-0c1b-4f0e-9d57-2a3f5b0c7e11/7",
        strength="0.5",
    )
    columns = request.columns()
    assert columns == {
        "prompt": "",
        "template": "Mug Wrap",
        "template_variables": {"animal": "fox", "legs": "4"},
        "style": "auto",
        "loras": ({"name": "Ink"}, {"name": "Sumi", "weight": 0.5}),
        "franchise": "Sumi",
        "reference": UPLOAD,
        "mask": "job:3f1c9a52-0c1b-4f0e-9d57-2a3f5b0c7e11/7",
        "strength": 0.5,
        "count": 1,
    }
    row = columns | {name: json.dumps(columns[name]) for name in ("loras", "template_variables")}
    assert read_more(**row) == request
    assert request_hash(read_more(**row)) == request_hash(request)


@pytest.mark.parametrize("loras", ["Ink", ["ink"], '["INK"]', [{"name": "Ink"}], [{"name": "Ink", "weight": None}]])
def test_one_lora_in_several_ways(loras: object) -> None:
    assert read_more(prompt="x", loras=loras).loras == (LoraUse("Ink"),)


@pytest.mark.parametrize(
    ("fields", "field", "says"),
    [
        ({"loras": ["Inc"]}, "loras", "there is no LoRA 'Inc'; did you mean Ink?"),
        ({"loras": {"Ink": 1}}, "loras", "must be a list"),
        ({"loras": [{"name": "Ink", "wieght": 1}]}, "loras", "objects such as"),
        ({"loras": [{"name": "Ink", "weight": 4.5}]}, "loras", "must be a number from -4 to 4, not 4.5"),
        ({"loras": ["Ink", "ink"]}, "loras", "Ink is in it twice"),
        ({"loras": ["Ink"] * 17}, "loras", "may have at most 16 entries; this has 17"),
        ({"loras": "[" * 100_000}, "loras", "must be plain JSON"),
        ({"loras": [["Ink"]]}, "loras", "must be text"),
        ({"template": "Mug"}, "template", "there is no template 'Mug'"),
        ({"variables": {"a": "b"}}, "template_variables", "needs a template"),
        ({"template": "Mug Wrap", "variables": ["a"]}, "template_variables", "must be an object"),
        ({"template": "Mug Wrap", "variables": {"a": True}}, "template_variables", "'a' must be text, not True"),
        ({"reference": "fox.png"}, "reference", "must be upload:ID"),
        ({"reference": "http://x.y/z"}, "reference", "must be an https:// URL"),
        ({"mask": UPLOAD}, "mask", "needs a picture to start from: name one in reference"),
        ({"strength": 0.5}, "strength", "needs a picture to start from: name one in reference"),
        ({"reference": UPLOAD, "strength": 0}, "strength", "above 0 and at most 1"),
        ({"reference": UPLOAD, "strength": 1.5}, "strength", "above 0 and at most 1"),
    ],
    ids=short,
)
def test_wrong_names_and_pictures(fields: dict[str, Any], field: str, says: str) -> None:
    with pytest.raises(InputError) as error:
        read_more(prompt="x", **fields)
    (problem,) = error.value.problems
    assert problem.field == field
    assert says in problem.message


def test_a_prompt_or_a_template() -> None:
    with pytest.raises(InputError, match="prompt: must not be empty"):
        read_more(template=" ")
    assert read_more(template="Mug Wrap").prompt == ""


def test_a_request_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        read().prompt = "other"  # type: ignore[misc]


def test_requests_that_mean_the_same_have_one_hash() -> None:
    spelled = request_hash(read(style="line_art", seed="7", metadata={"a": 1, "b": 2}, run_at="2026-11-30T18:00:00Z"))
    otherwise = request_hash(
        read(style="Line Art", seed=7, count=1, metadata={"b": 2, "a": 1}, run_at="2026-11-30T19:00:00+01:00", mask="")
    )

    assert spelled == otherwise
    assert len(spelled) == 64
    assert spelled != request_hash(read(style="line_art", seed="8", metadata={"a": 1, "b": 2}))


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from(["\0", "\ud800", "1", "Anime"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.sampled_from([*Request.model_fields, *NOT_YET]), values))
def test_nothing_else_is_ever_raised(fields: dict[str, Any]) -> None:
    with suppress(InputError):
        request = read_request(fields, Names(STYLES, MODES))
        assert len(request_hash(request)) == 64


UPLOAD, PICTURE = "upload:019dac38-5e55-74f3-8ac4-2ecd7f3d5ac2", "job:3f1c9a52-0c1b-4f0e-9d57-2a3f5b0c7e11/0"


@pytest.mark.parametrize("more", [[PICTURE.upper()], (PICTURE,), PICTURE, json.dumps([PICTURE])], ids=short)
def test_further_references_in_several_ways(more: object) -> None:
    request = read(reference=UPLOAD, more_references=more)
    assert request.columns()["more_references"] == (PICTURE,)
    assert request_hash(request) == request_hash(read(reference=UPLOAD, more_references=[PICTURE]))
    assert request_hash(request) != request_hash(read(reference=UPLOAD))
    assert read(reference=UPLOAD, more_references=[]).more_references is None


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"more_references": [UPLOAD]}, "needs a picture to start from"),
        ({"reference": UPLOAD, "more_references": [UPLOAD] * 3}, "may have at most 2 pictures beside the one in"),
        ({"reference": UPLOAD, "more_references": [None]}, "must be text"),
        ({"reference": UPLOAD, "more_references": [PICTURE, "fox.png"]}, "must be upload:ID"),
        ({"reference": UPLOAD, "more_references": [[UPLOAD]]}, "must be text"),
        ({"reference": UPLOAD, "more_references": {"a": UPLOAD}}, "must be a list"),
        ({"reference": UPLOAD, "more_references": "[" * 100_000}, "must be plain JSON"),
    ],
    ids=short,
)
def test_further_references_that_are_wrong(fields: dict[str, Any], says: str) -> None:
    found = problems(**fields)
    assert list(found) == ["more_references"]
    assert says in found["more_references"]
