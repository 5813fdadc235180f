"""What the Space serves: the autoencoders that its owner gave, and, unless that is switched off, repos that visitors name.

Features, index and host of an autoencoder are loaded apart from each other, in one background thread, one after the other:
what needs only the feature dataset works while the host still loads.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import gallery
from .later import Later
from .limits import MAX_NAME, RequestError, place, shown, text
from .machines import Machine, Machines
from .records import Json
from .snippets import Origin
from .sources import Features, Given, Source, Visited


if TYPE_CHECKING:
    from ..features.index import FeatureIndex
    from ..models import SAE
    from ..steering.recipes import Preset

VISITORS = 4  # autoencoders of visitors in memory at once
PATIENCE = 30.0  # seconds that a request waits for what is still loading


class Served:
    """One autoencoder and what is known of it; its parts arrive one after the other.

    Args:
        name (`str`): in links and requests.
        source ([`Source`]): where its parts come from.
        executor (`ThreadPoolExecutor`): of one thread, which loads them.
        machines ([`Machines`]): the hosts in memory.
        known (`dict`, *optional*): facts of its config that are there already.
    """

    def __init__(
        self,
        name: str,
        source: Source,
        executor: ThreadPoolExecutor,
        machines: Machines,
        known: dict[str, Any] | None = None,
    ) -> None:
        self.name, self.source, self._machines, self._known = name, source, machines, known or {}
        self._closed = False
        self.features: Later[Features | None] = Later(f"The feature dataset of {name}", source.features, executor)
        self.index: Later[FeatureIndex | None] = Later(f"The search index of {name}", self._index, executor)
        self.examples: Later[list[Json]] = Later(f"The examples of {name}", self._examples, executor)
        self.machine: Later[Machine] = Later(f"The host of {name}", self._machine, executor)

    def start(self) -> Served:
        """Begins to load: what the page needs first comes first."""
        for part in self._parts:
            part.start()
        return self

    def _index(self) -> FeatureIndex | None:
        from ..features.index import FeatureIndex

        found = self.features.get()
        return None if found is None else FeatureIndex.open(found.dataset)

    @property
    def _parts(self) -> tuple[Later[Any], ...]:
        return self.features, self.index, self.examples, self.machine

    def _examples(self) -> list[Json]:
        found = self.features.get()
        return [] if found is None else gallery.examples(self, found.sae_id)

    def _machine(self) -> Machine:
        sae = self.source.sae()
        sae.eval().requires_grad_(False)
        key = (sae.config.base_model, sae.config.base_revision, getattr(self.source, "host_name", None))

        def load() -> Machine:
            host, tokenizer = self.source.host(sae)
            return Machine(host, tokenizer, getattr(self.source, "host_name", None) or str(sae.config.base_model))

        machine = self._machines.add(key, self.name, sae, load)
        if self._closed:  # meanwhile others were asked for
            self._machines.drop(self.name)
        return machine

    @property
    def sae(self) -> SAE | None:
        """The autoencoder, once it is there."""
        machine = self.machine.peek()
        return None if machine is None else machine.saes.get(self.name)

    @property
    def facts(self) -> dict[str, Any]:
        """Architecture, places and sizes, from whatever is there first: config, feature dataset, collection."""
        sae, found = self.sae, self.features.peek()
        source = found.dataset.saes[found.sae_id] if found is not None else None
        of = sae.config.to_dict() if sae is not None else {}
        architecture = str(of.get("model_type", "")).removeprefix("hf_sae_") or None
        names = ("d_sae", "d_in", "d_out", "k", "hook_in", "hook_out", "base_model", "base_revision")
        facts = {"architecture": architecture, **{key: of.get(key) for key in names}}
        for key, value in facts.items():
            if value is None:
                facts[key] = self._known.get(key) or getattr(source, key, None)
        return facts | {"metrics": self._known.get("metrics")}

    @property
    def origin(self) -> Origin:
        """How somebody else loads the same."""
        from ..assets import DEFAULT_HOST

        name = self.facts["base_model"] or getattr(self.source, "host_name", None)
        return self.source.origin(self.features.peek(), None if name in (None, DEFAULT_HOST) else str(name))

    @cached_property
    def readme(self) -> str:
        """Its card as Markdown, or `""`; read when somebody asks for it."""
        return self.source.card()

    @cached_property
    def presets(self) -> list[Preset]:
        """Edits that its author recommends; read when somebody asks for them."""
        return self.source.presets()

    @property
    def status(self) -> dict[str, str]:
        """State of the parts."""
        return {"features": self.features.state, "search": self.index.state, "host": self.machine.state}

    def close(self) -> None:
        """Lets go of the index and the host."""
        self._closed = True
        for part in self._parts:
            part.cancel()
        index = self.index.peek()
        if index is not None:
            index.close()
        self._machines.drop(self.name)


class Catalog:
    """All that is served, by name.

    Args:
        given (`list` of `(name, Given, facts)`): what the owner gave; the first is what a visitor sees first.
        visitors (`bool`): whether repos that visitors name are loaded, too.
    """

    def __init__(self, given: Sequence[tuple[str, Given, dict[str, Any]]], visitors: bool = True) -> None:
        self.visitors = visitors
        self._executor = ThreadPoolExecutor(1, "loading")
        self._machines = Machines()
        self._lock = threading.Lock()
        self._given = {
            name: Served(name, source, self._executor, self._machines, facts) for name, source, facts in given
        }
        self._visited: OrderedDict[str, Served] = OrderedDict()
        if self._given:
            self.find()  # the first begins to load before anybody asks

    def served(self) -> list[Served]:
        """The owner's, then those of visitors."""
        with self._lock:
            return [*self._given.values(), *self._visited.values()]

    def find(self, name: Any = "") -> Served:
        """One by its name; `""` is the first. A visitor's repo that is not there yet begins to load.

        Raises:
            RequestError: for a name that is none, and where repos of visitors are not served.
        """
        asked = text(name, "sae", MAX_NAME, empty=True).strip()
        with self._lock:
            if not asked and self._given:
                return next(iter(self._given.values())).start()
            if asked in self._given:
                return self._given[asked].start()
            if not self.visitors:
                raise RequestError(f"{shown(asked)} is not served here. There is {', '.join(self._given)}.")
            where = place(asked)
            known = self._visited.get(str(where))
            if known is not None and known.features.state == "failed":  # perhaps it is there now
                known = None
            if known is None:
                known = Served(str(where), Visited(where), self._executor, self._machines)
                self._visited[str(where)] = known
            self._visited.move_to_end(str(where))
            gone = [self._visited.popitem(last=False)[1] for _ in range(len(self._visited) - VISITORS)]
            for served in gone:
                served.close()
            return known.start()

    def close(self) -> None:
        """Ends all threads and closes all files."""
        self._executor.shutdown(wait=False, cancel_futures=True)
        for served in self.served():
            served.close()
        self._machines.close()


def open_catalog(
    repo: str,
    subfolder: str = "",
    features: str | None = None,
    host: str | None = None,
    visitors: bool = True,
) -> Catalog:
    """The catalog of a repo or folder with one autoencoder, or with several in folders.

    Args:
        repo (`str`): Hub id or folder.
        subfolder (`str`): only what lies there.
        features (`str`, *optional*): Hub id or folder of the feature dataset.
        host (`str`, *optional*): instead of the host that the configs name.
        visitors (`bool`): as in [`Catalog`].

    Raises:
        CheckpointError: if there is no autoencoder.
        OSError: if the repo cannot be reached.
    """
    from ..hub import load_saes
    from ..models.pinning import split_name

    repo, subfolder = split_name(repo, subfolder)
    found = load_saes(repo, subfolder=subfolder)
    base = Path(repo).resolve().name if Path(repo).is_dir() else repo
    given = []
    for inside, facts in found.index.items():
        folder = "" if inside == "." else inside
        name = f"{base}/{folder}" if folder else base
        given.append((name, Given(repo, folder, features, host), facts))
    return Catalog(given, visitors)
