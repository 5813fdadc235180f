"""HTML of features from plain values: everything is escaped, no script runs, and one style sheet serves pages and notebooks."""

from .charts import bars, histogram
from .contexts import ContextView
from .feature import GROUPS, FeatureView, RelatedView
from .feature_page import feature_page
from .hits import HitView, ReasonView, hit_card, hit_list
from .labels import LabelView
from .pages import notebook, page
from .skeletons import feature_skeleton, hit_skeleton
from .streams import StreamView, stream_columns
from .token_grid import GridView, token_grid
from .token_strip import token_strip


def __getattr__(name: str) -> str:
    if name == "STYLE":  # read when it is asked for
        from .themes import style

        return style()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "GROUPS",
    "STYLE",
    "ContextView",
    "FeatureView",
    "GridView",
    "HitView",
    "LabelView",
    "ReasonView",
    "RelatedView",
    "StreamView",
    "bars",
    "feature_page",
    "feature_skeleton",
    "histogram",
    "hit_card",
    "hit_list",
    "hit_skeleton",
    "notebook",
    "page",
    "stream_columns",
    "token_grid",
    "token_strip",
]
