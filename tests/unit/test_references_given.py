"""What ``reference``, ``mask`` and ``strength`` may say."""

from __future__ import annotations

from uuid import UUID

import pytest

from tenkaigen_worker.references.given import JobPicture, Upload, Url, read_reference, read_strength

ID = UUID("3f1c9a52-0c1b-4f0e-9d57-2a3f5b0c7e11")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (f"upload:{ID}", Upload(ID)),
        (f" UPLOAD:{str(ID).upper()} ", Upload(ID)),
        (f"job:{ID}/0", JobPicture(ID, 0)),
        (f"job:{ID}/7", JobPicture(ID, 7)),
        ("https://cdn.example.com/a%20b.png?x=1#top", Url("https://cdn.example.com/a%20b.png?x=1")),
        ("https://cdn.example.com:443/a.png", Url("https://cdn.example.com/a.png")),
        ("HTTPS://CDN.example.com", Url("https://cdn.example.com")),
    ],
)
def test_what_may_be_given(text: str, value: object) -> None:
    given = read_reference(text)
    assert given == value
    assert read_reference(str(given)) == given


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "must be upload:ID"),
        ("fox.png", "not 'fox.png'"),
        ("file:///etc/passwd", "must be upload:ID"),
        ("ftp://example.com/a.png", "must be upload:ID"),
        ("upload:7", "must be upload:ID"),
        (f"upload:{ID}/../x", "must be upload:ID"),
        (f"upload:{ID.hex}", "must be upload:ID"),
        (f"job:{ID}", "job:3f1c9a52"),
        (f"job:{ID}/-1", "must be upload:ID"),
        (f"job:{ID}/8", "no picture 8"),
        (f"job:{ID}/99", "0 to 7"),
        ("http://cdn.example.com/a.png", "must be an https:// URL"),
        ("https://", "URL"),
        ("https:///a.png", "URL"),
        ("https://user:secret@cdn.example.com/a.png", "without a user name and password"),
        ("https://cdn.example.com:8443/a.png", "not with port 8443"),
        ("https://cdn.example.com:0/a.png", "not with port 0"),
        ("https://cdn.example.com:99999/a.png", "is not a URL"),
        ("https://[::1/a.png", "is not a URL"),
        ("https://cdn.example.com/" + "x" * 2000, "may have at most 2000 characters; this has 2024"),
    ],
)
def test_what_may_not(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says) as caught:
        read_reference(text)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(("value", "strength"), [(1, 1.0), (0.6, 0.6), ("0.25", 0.25), (1e-6, 1e-6)])
def test_strength(value: object, strength: float) -> None:
    assert read_strength(value) == strength


@pytest.mark.parametrize("value", [0, -0.1, 1.01, float("nan"), float("inf"), "much", "1e400", True, [0.5], None])
def test_strength_out_of_range(value: object) -> None:
    with pytest.raises(ValueError, match="must be a number above 0 and at most 1, not "):
        read_strength(value)
