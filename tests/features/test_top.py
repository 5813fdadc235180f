from __future__ import annotations

import json
import re

import pytest
import torch

from hf_sae.errors import DataError, HookPointError
from hf_sae.features import TopFeatures, token_texts, top_features
from hf_sae.shades import contrast, shade, text_on
from hf_sae.terminal import columns


TEXT = "def close(self):\n\tself.file.close()"


def dense(sae, host, tokenizer, text):
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        hidden = host.model(ids, output_hidden_states=True).hidden_states[1]
        return sae.encode(hidden)[0]


def test_the_strongest_latents_of_each_token_are_found(sae, host, tokenizer) -> None:
    top, latents = top_features(sae, host, tokenizer, TEXT, k=3), dense(sae, host, tokenizer, TEXT)
    assert top.tokens[0] == "<|bos|>"
    assert "".join(top.tokens[1:]) == TEXT
    assert top.latents[0] == top.activations[0] == []
    for position in range(1, len(top.tokens)):
        expected = latents[position].topk(3)
        assert top.latents[position] == expected.indices.tolist()
        torch.testing.assert_close(torch.tensor(top.activations[position]), expected.values)


def test_negative_latents_count_by_size(sae, host, tokenizer) -> None:
    encode = sae.encode
    sae.encode = lambda x: -encode(x)
    top = top_features(sae, host, tokenizer, TEXT, k=2)
    assert all(a < 0 for row in top.activations for a in row)
    assert top.latents[3] == dense(sae, host, tokenizer, TEXT)[3].neg().topk(2).indices.tolist()
    assert "dashed" in top._repr_html_()
    assert "]-9*" in str(top)


def test_a_latent_that_does_not_fire_is_left_out(sae, host, tokenizer) -> None:
    top = top_features(sae, host, tokenizer, TEXT, k=1000)
    assert all(0 < len(row) <= sae.config.k for row in top.latents[1:])


def test_the_dictionary_is_json(sae, host, tokenizer) -> None:
    top = top_features(sae, host, tokenizer, TEXT, k=2)
    entry = json.loads(json.dumps(top.to_dict()))["tokens"]
    assert entry[0] == {"position": 0, "token": "<|bos|>", "id": 0, "special": True, "latents": []}
    assert entry[2]["latents"] == [
        {"latent": j, "activation": a} for j, a in zip(top.latents[2], top.activations[2], strict=True)
    ]


def test_the_table_fits_80_columns_and_names_every_latent(sae, host, tokenizer) -> None:
    for k in (1, 5, 6):
        top = top_features(sae, host, tokenizer, TEXT, k=k)
        lines = str(top).splitlines()
        assert max(map(columns, lines)) <= 80
        assert "\x1b" not in str(top)
        for row in top.latents:
            assert all(f"{latent}:" in str(top) for latent in row)
        assert "⟨<|bos|>⟩" in lines[0]


def test_full_shade_is_the_recorded_maximum_where_there_is_one(sae, host, tokenizer) -> None:
    assert "in this text" in top_features(sae, host, tokenizer, TEXT).scale
    sae.feature_stats = {
        "maximum": torch.full((40,), 8.0), "density": torch.zeros(40), "tokens": torch.tensor(12345.0)
    }  # fmt: skip
    top = top_features(sae, host, tokenizer, TEXT)
    assert "12,345 tokens" in top.scale
    assert set(top.maxima.values()) == {8.0}


def hostile() -> TopFeatures:
    tokens = ["<script>alert(1)</script>", "\x1b[31mred", '" onmouseover="x', "\u202eoverride", "\n", "&amp;"]
    return TopFeatures(
        tokens, list(range(6)), [[1]] * 6, [[1.0]] * 6, frozenset({2}), {1: 1.0}, "full = <b>1</b>"
    )  # fmt: skip


def test_hostile_tokens_are_escaped_everywhere() -> None:
    page, text = hostile()._repr_html_(), str(hostile())
    body = page.partition("</style>")[2]
    assert set(re.findall(r"<(\w+)", body)) == {
        "div", "span", "p", "table", "thead", "tbody", "tr", "td", "th"
    }  # fmt: skip
    assert 'onmouseover="' not in body
    assert "&amp;amp;" in body
    for output in (page, text):
        assert "\x1b" not in output
        assert "\u202e" not in output
        assert "\\x1b[31mred" in output


def test_text_is_readable_on_every_shade() -> None:
    for step in range(-100, 101):
        background = shade(step / 100)
        assert contrast(background, text_on(background)) >= 4.5
    assert (shade(0), shade(0.5), shade(1), shade(-1), shade(7)) == (
        "#FFFFFF",
        "#FDBB84",
        "#7F2704",
        "#08306B",
        "#7F2704",
    )
    assert (text_on(shade(1)), text_on(shade(0.1))) == ("#FFFFFF", "#000000")


def test_token_texts_keep_spaces_and_show_bytes(tokenizer) -> None:
    ids = tokenizer("a é self\n", add_special_tokens=False)["input_ids"]
    texts = token_texts(tokenizer, ids)
    assert texts[0] == "a"
    assert "⟨c3⟩" in texts
    assert texts[-1] == "\n"
    assert " self" in "".join(texts)


def test_impossible_requests_say_why(sae, host, tokenizer) -> None:
    with pytest.raises(DataError, match="empty"):
        top_features(sae, host, tokenizer, "")
    with pytest.raises(DataError, match="64 at most"):
        top_features(sae, host, tokenizer, "x = 1\n" * 100)
    with pytest.raises(ValueError, match="k=0"):
        top_features(sae, host, tokenizer, TEXT, k=0)
    sae.config.d_in = 12
    with pytest.raises(HookPointError, match="16 wide"):
        top_features(sae, host, tokenizer, TEXT)
