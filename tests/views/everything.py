"""Every view with one text in every argument that takes text."""

from __future__ import annotations

from hf_sae import views
from hf_sae.views import ContextView, FeatureView, GridView, HitView, LabelView, ReasonView, RelatedView, StreamView


def everything(said: str, number: float = 1.5) -> dict[str, str]:
    tokens, acts = [said, "\n", "⟨c3⟩", " x"], [number, 0.0, -2.0, 1.0]
    context = ContextView(tokens, acts, [1, 2, 3, 4], 0, {3}, said, said)
    label = LabelView(said, said, said, 0.9, said, 0.5, 0.8, 0.95, 40, 1, [said])
    feature = FeatureView(
        said, 3, 0.002, number, 1_000_000, number, [label, label], {group: [context] for group in [*views.GROUPS, said]},
        [(said, number)], [(said, -1.0)], said, [5, 1], [0.0, number, 4.0], [5, 1], [-1.0, 0.0, 1.0],
        [RelatedView(4, 0.5, said, said)], [RelatedView(5, 9, said, said)], said, said, said, 64, said, True,
    )  # fmt: skip
    kinds = ("label", said)
    hit = HitView(
        said,
        3,
        label,
        0.002,
        number,
        number,
        said,
        [ReasonView(k, said, [(0, 4)], number) for k in kinds],
        [context],
        said,
        True,
    )
    grid = GridView(tokens, [3], [acts], [1, 2, 3, 4], {3}, {3: said}, {}, {3: said}, said, said, 0, 3, said, True)
    stream = StreamView(
        said, tokens, said, [1, 2, 3, 4], {3}, acts, number, [number, 0.0, 2.0, 1.0], number, said, said, said, 1, said
    )
    return {
        "strip": views.token_strip(tokens, acts, maximum=number, special={3}, around=1, clickable=True, sae_id=said, notes=tokens),
        "feature": views.feature_page(feature, uid=said),
        "hits": views.hit_list([hit, hit]),
        "empty": views.hit_list([], query=said, suggestions=[said] * 3, clickable=True),
        "grid": views.token_grid(grid),
        "streams": views.stream_columns([stream, StreamView(said, tokens, state="failed", note=said, small=True)], clickable=True),
        "histogram": views.histogram([1, 10], [0.0, number, 4.0], title=said, unit=said, note=said),
        "bars": views.bars(tokens, acts, empty=said) + views.bars([], [], empty=said),
        "skeletons": views.feature_skeleton() + views.hit_skeleton(2),
    }  # fmt: skip
