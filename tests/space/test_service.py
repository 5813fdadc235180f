"""The functions of the Space against latents that are known by heart, and against values that nobody should send."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from hf_sae.space import limits
from hf_sae.space.limits import Place, RequestError, place
from hf_sae.space.service import Service
from tests.space.planted import CLASS, D_SAE, DEAD, DEF, IMPORT, LABEL, OS, RETURN, SELF, WORDS


def test_every_answer_is_plain_json(service: Service):
    answers = [
        service.list_saes(),
        service.search_features("import"),
        service.get_feature(SELF),
        service.inspect_text("import os"),
        service.top_features_for_prompt("import os"),
        service.contrast_texts(["import os"], ["def f(self)"]),
        service.activations_on("import os", OS),
    ]
    for answer in answers:
        assert json.loads(json.dumps(answer, allow_nan=False)) == answer


def test_list_says_what_is_served_and_whether_it_is_loaded(service: Service):
    (entry,) = service.list_saes()
    assert (entry["sae"], entry["d_sae"], entry["hook_in"], entry["base_model"]) == (
        "planted",
        D_SAE,
        "embed",
        "default_host",
    )
    assert entry["status"] == {"features": "ready", "search": "ready", "host": "ready"}
    assert entry["features"] == D_SAE
    assert entry["notes"] == []


def test_inspect_finds_each_planted_latent_on_its_token_alone(service: Service):
    found = service.inspect_text("import os\ndef f(self):\n    return None\n", top=3)
    rows = {token["token"]: [entry["latent"] for entry in token["latents"]] for token in found["tokens"]}
    for latent in (IMPORT, OS, DEF, RETURN):
        assert rows.get(WORDS[latent], [latent]) == [latent]
    assert rows["import"] == [IMPORT]
    assert rows["\n"] == []
    (entry,) = next(token for token in found["tokens"] if token["token"] == "import")["latents"]
    assert entry["activation"] == pytest.approx(1.0, abs=1e-4)
    assert entry["label"] == "start of an import"


def test_one_feature_on_a_text(service: Service):
    found = service.activations_on("import os\nimport sys", IMPORT)
    assert [token for token, a in zip(found["tokens"], found["activations"], strict=True) if a] == ["import"] * 2
    assert sum(found["activations"]) == pytest.approx(2.0, abs=1e-3)
    assert found["special"] == [0]


def test_search_by_words_by_prompt_by_contrast_and_by_promoted_token(service: Service):
    assert service.search_features("start of an import")["hits"][0]["feature"] == IMPORT
    promoted = service.search_features(" return", by="promoted")["hits"]
    assert promoted[0]["feature"] == RETURN
    assert promoted[0]["reasons"][0]["kind"] == "promoted token"
    fires = service.top_features_for_prompt("import os", order="max")["hits"]
    assert {hit["feature"] for hit in fires} == {IMPORT, OS}
    best = service.contrast_texts(["class A:", "class B:"], ["x = y", "z = y"])["hits"][0]
    assert best["feature"] == CLASS
    assert best["score"] > 0
    assert service.contrast_texts(["x = y", "z = y"], ["class A:", "class B:"])["hits"][0]["score"] < 0


def test_filters_and_limits_bound_a_search(service: Service):
    both = service.search_features("import self", limit=100)["hits"]
    assert {IMPORT, SELF} <= {hit["feature"] for hit in both}
    assert len(service.search_features("import self", limit=1)["hits"]) == 1
    scored = service.search_features("import", min_score=0.5)["hits"]
    assert {hit["feature"] for hit in scored} <= {IMPORT, SELF}
    assert service.search_features("import", max_density=0.0)["hits"] == []


def test_a_feature_has_everything(service: Service):
    found = service.get_feature(SELF)
    assert found["max_act"] == pytest.approx(1.0, abs=1e-3)
    assert found["labels"][0]["text"] == LABEL
    assert found["labels"][0]["score"] == pytest.approx(0.9)
    assert {example["kind"] for example in found["examples"]} >= {"top", "zero"}
    for example in found["examples"]:
        if example["kind"] == "top":
            assert example["activations"][example["peak"]] == pytest.approx(1.0, abs=1e-3)
    assert sum(found["histogram"]["counts"]) == found["n_fired"]
    assert service.get_feature(DEAD)["density"] == 0


@pytest.mark.parametrize("value", [math.nan, math.inf, -1, 0, 1.5, 101, 10**30, True, "5", None, [1]])
def test_a_number_is_whole_and_within_bounds(service: Service, value: Any):
    for call in (
        lambda: service.search_features("import", limit=value),
        lambda: service.top_features_for_prompt("import", limit=value),
        lambda: service.contrast_texts(["a b"], ["c d"], limit=value),
    ):
        with pytest.raises(RequestError, match=r"limit is .*: give a whole number from 1 to 100"):
            call()


@pytest.mark.parametrize("value", [math.nan, -1, 12, 2**31, 2**70, 0.5, "1", None])
def test_a_feature_that_is_none_is_refused(service: Service, value: Any):
    with pytest.raises(RequestError, match="feature"):
        service.get_feature(value)
    with pytest.raises(RequestError, match="feature is"):
        service.activations_on("import", value)


@pytest.mark.parametrize("value", [math.nan, math.inf, -0.1, 1.1, "0.5", True])
def test_a_share_is_from_0_to_1(service: Service, value: Any):
    for name in ("min_density", "max_density", "min_score"):
        with pytest.raises(RequestError, match=f"{name} is"):
            service.search_features("import", **{name: value})


def test_texts_are_bounded(service: Service):
    for wrong, message in (("", "empty"), ("  \n", "empty"), (3, "give a text"), ("x " * 10**5, "are read at most")):
        with pytest.raises(RequestError, match=message):
            service.inspect_text(wrong)  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="the host reads 256 at most"):
        service.inspect_text("a b c d " * 200)
    for wrong in ([], ["a"] * 17, "", [1], ["x" * 5000] * 2, None):
        with pytest.raises(RequestError):
            service.contrast_texts(wrong, ["b c"])  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="by is 'x': give one of words, promoted"):
        service.search_features("import", by="x")
    with pytest.raises(RequestError, match="order is"):
        service.top_features_for_prompt("import", order="; DROP TABLE")


@pytest.mark.parametrize(
    "query", ['"', "AND OR NOT", "a* NEAR(b)", "'; DROP TABLE features; --", "{x} : ^y", "\x00\ud800", "🦜"]
)
def test_nothing_in_a_query_is_syntax(service: Service, query: str):
    assert service.search_features(query)["hits"] == service.search_features(query)["hits"]
    assert service.search_features("import")["hits"]


@pytest.mark.parametrize(
    "name",
    [
        "http://a/b", "https://huggingface.co/user/repo", "../x", "a/..", "user/repo/../x", "user/repo/..", "/etc/passwd",
        "user//repo", "user/repo/", "user", "user/re po", "user/repo?x", "user\\repo", "user/repo/.", "./a/b",
        "a/b" + "c" * 300, "~/x", "%2e%2e/x", "user/repo/a/../../b", "\u2025/x", "..%2f/x",
    ],
)  # fmt: skip
def test_a_name_that_is_no_repo_is_refused_before_anything_is_asked_for(service: Service, name: str):
    with pytest.raises(RequestError, match=r"names no autoencoder|are read at most"):
        service.get_feature(0, name)


def test_names_of_repos():
    assert place("user/repo") == Place("user/repo")
    assert place("user/repo/layer_1/width_2") == place("user/repo:layer_1/width_2")
    assert place("user/repo:layer_1/width_2") == Place("user/repo", "layer_1/width_2")
    assert str(place("a.b/c-d_1/x+y=z")) == "a.b/c-d_1/x+y=z"


def test_a_folder_of_this_machine_is_no_repo(service: Service, monkeypatch: pytest.MonkeyPatch, tmp_path: Any):
    (tmp_path / "user" / "repo").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RequestError, match="is no repo of the Hub"):
        service.get_feature(0, "user/repo")


def test_bounds_of_steering_are_there():
    assert limits.whole(3.0, "max_new_tokens", 1, limits.MAX_NEW_TOKENS) == 3
    assert limits.real(-2, "strength", -limits.MAX_STRENGTH, limits.MAX_STRENGTH) == -2.0
    with pytest.raises(RequestError, match="strength is nan"):
        limits.real(math.nan, "strength", -1, 1)
