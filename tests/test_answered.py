import base64
import io
import re

import numpy as np
import pytest
from matplotlib import colormaps
from matplotlib.image import imread

from speechfuse.decision import COSTS, Decision
from speechfuse.pipeline.answers import (
    Answer,
    Label,
    Layers,
    Scores,
    Speakers,
    Transcript,
    Voice,
    Word,
)
from speechfuse.turns import Turn
from speechfuse.types import Metric

pytest.importorskip("gradio", reason="the page and the service need the extra `demo`")

from speechfuse.serve.answered import answer_html, comparison_html, refusal_html
from speechfuse.serve.pictures import INK, bars_over_time, by_word, class_bars, layer_picture
from speechfuse.serve.refusals import Refusal

EVIL = "<script>alert(1)</script>"


def test_nothing_that_a_model_or_client_says_is_markup():
    noise = np.random.default_rng(0).standard_normal(16000).astype(np.float32)
    scores = {EVIL: 0.7, "calm & quiet": 0.3}
    weights = np.full((3, 2), 1 / 3, np.float32)
    answer = Answer(
        EVIL,
        1.0,
        {
            "asr": Transcript(EVIL, [Word(EVIL, 0.0, 0.5, 0.9)]),
            EVIL: Label(EVIL, scores, [Scores(0.0, 1.0, scores)]),
            "who": Speakers([Turn(EVIL, 0.0, 1.0)]),
        },
        {"asr": [Layers(0.0, 1.0, EVIL, [0, 1, 2], weights, [EVIL, "end"])]},
    )
    page = answer_html(answer, noise)
    assert "<script" not in page
    assert page.count('class="picture') == 3
    assert "<script" not in refusal_html(Refusal(422, EVIL, EVIL, EVIL))


def test_two_voices_are_told_apart_at_the_threshold_of_the_run():
    unit = np.array([1.0, 0.0], np.float32)
    costs = {name: Metric(0.125, 0.1, 0.2, 9) for name in COSTS}
    decision = Decision(0.7, "eer", 0.05, 90, 9, 0, costs)
    for other, verdict in (([0.8, 0.6], "One speaker"), ([0.6, 0.8], "Two speakers")):
        pair = Voice(unit, decision), Voice(np.array(other, np.float32), decision)
        page = comparison_html({"who": pair})
        assert f'<p class="said">{verdict} <span class="beside">cosine {other[0]:.3f}<' in page
        assert '<div class="gauge" style="--at: 70.0%">' in page
        assert '<p class="mark">threshold 0.700</p>' in page
        assert "On test trials 12.5 % false accepts" in page
    page = comparison_html({"who": (Voice(unit), Voice(unit))})
    assert '<p class="said">cosine 1.000</p>' in page
    assert "No threshold yet: speechfuse evaluate finds one" in page
    assert "mark" not in page


def test_times_of_words_are_read_without_a_mouse():
    words = [Word("one", 0.125, 0.5, 0.9), Word("two", 0.75, 1.0, 0.9)]
    noise = np.random.default_rng(0).standard_normal(16000).astype(np.float32)
    page = answer_html(Answer("x.wav", 1.0, {"asr": Transcript("one two", words)}), noise)
    shown = re.sub(r"<[^>]*>", " ", page)
    assert "one 0.12" in shown
    assert "two 0.75" in shown
    page = answer_html(Answer("x.wav", 1.0, {"asr": Transcript("one two", None)}), noise)
    assert "one two</p>" in page
    assert "<small>" not in page


def test_pictures_take_the_colour_of_the_page():
    drawn = class_bars(Label("a", {"a": 0.9, "b": 0.1}), "emotion")
    assert "currentColor" in drawn
    assert INK not in drawn
    assert "90 %" in drawn


def test_several_parts_are_bars_over_time():
    rows = [Scores(2.0 * i, 2.0 * i + 2, {"a": 0.25 * i, "b": 1 - 0.25 * i}) for i in range(4)]
    drawn = bars_over_time(rows, {"a": 0.4, "b": 0.6}, "emotion")
    assert "seconds" in drawn
    assert "%" in drawn
    whole = Scores(0.0, 8.0, {"a": 0.4, "b": 0.6})
    for label, said in (
        (Label("b", whole.scores, [whole], rows), "in parts of about 2.0 s"),
        (Label("b", whole.scores, rows), "in parts of about 2.0 s"),
        (Label("b", whole.scores, rows, rows * 40), "in parts of about 2.0 s"),  # too many to see
        (Label("b", whole.scores, [whole]), "reads all of it as one vector"),
        (Label("b", whole.scores, [whole._replace(end=1.0)]), None),
    ):
        page = answer_html(Answer("x.wav", 8.0, {"emotion": label}), np.ones(16000, np.float32))
        assert "60 %" in page
        assert "note" not in page if said is None else said in page


def test_weights_that_never_change_are_bars_and_others_a_map():
    same = [Layers(20.0 * i, 20.0 * i + 20, "ssl", [0, 1], np.array([0.2, 0.8])) for i in range(2)]
    other = [Layers(0.0, 20.0, "ssl", [0, 1], np.array([[0.2, 0.5], [0.8, 0.5]]))]
    assert "weight" in layer_picture(same, None, "t")
    drawn = layer_picture(other, None, "t")
    assert "seconds" in drawn
    assert "<image" in drawn


def test_a_map_has_the_colours_of_what_is_in_it_and_its_scale_is_never_scrolled_away():
    weights = np.random.default_rng(0).uniform(0.2, 0.3, (4, 41))
    weights[2, 5], weights[1, 7] = 0.31, 0.19
    given = Layers(0.0, 9.0, "t", [0, 1, 2, 3], weights, ["so"] * 40 + ["end"])
    drawn = layer_picture([given], "so " * 40, "t")
    scale, map_ = drawn.split('<div class="scrolled">')
    assert "0.190" in scale
    assert "0.310" in scale
    assert "linear-gradient" in scale
    (image,) = re.findall(r'xlink:href="data:image/png;base64,([^"]+)"', map_)
    pixels = imread(io.BytesIO(base64.b64decode(image)))[..., :3]
    ends = colormaps["viridis"]([0.0, 1.0])[:, :3]
    for end in ends:
        assert np.abs(pixels - end).max(-1).min() < 0.01
    same = Layers(0.0, 9.0, "t", [0, 1], np.full((2, 4), 0.5) + 1e-6, ["so"] * 3 + ["end"])
    assert "0.495" in layer_picture([same], "so so so", "t")  # rounding is no difference


def test_tokens_are_shown_as_the_words_they_make_up():
    weights = np.arange(12, dtype=np.float32).reshape(2, 6)
    texts = [["he", "llo", "end"], ["you", "too", "end"]]
    words, columns = by_word(texts, weights, "hello you too")
    assert words == ["hello", "end", "you", "too", "end"]
    np.testing.assert_allclose(columns[0], [0.5, 2, 3, 4, 5])
    said = [["end", "ing", "end"], ["end", "", "end"]]  # what ends a stretch is no word of it
    words, columns = by_word(said, weights, "ending end")
    assert words == ["ending", "end", "end", "end"]
    np.testing.assert_allclose(columns[0], [0.5, 2, 3, 5])
    assert by_word([["x", "end"]], weights[:, :2], "hello")[0] == ["x", "end"]


def test_a_map_over_many_words_is_wide_and_scrolled():
    few, many = (
        Layers(0.0, 9.0, "t", [0, 1], np.full((2, n + 1), 0.5), ["so"] * n + ["end"])
        for n in (3, 40)
    )
    assert "scrolled" not in layer_picture([few], "so so so", "t")
    drawn = layer_picture([many], "so " * 40, "t")
    assert 'class="scrolled"' in drawn
    assert drawn.count(">so<") == 40
