"""One planted autoencoder and one running page for all tests of this folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from hf_sae.space.catalog import Catalog, open_catalog
from hf_sae.space.service import Service
from tests.space import planted


os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
PATIENCE = 60.0


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the planted autoencoder; its features lie beside it."""
    return planted.write(tmp_path_factory.mktemp("space"))


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Indices are made in a cache of these tests' own."""
    patch = pytest.MonkeyPatch()
    patch.setattr(constants, "HF_HOME", str(tmp_path_factory.mktemp("home")))
    yield
    patch.undo()


@pytest.fixture(scope="session")
def service(folder: Path) -> Iterator[Service]:
    """Answers about the planted autoencoder."""
    catalog: Catalog = open_catalog(str(folder))
    catalog.find().machine.get(PATIENCE)
    yield Service(catalog, PATIENCE)
    catalog.close()


@dataclass
class Running:
    """A page that is served."""

    app: Any
    url: str
    port: int


def launch(service: Service, port: int | None = None) -> Running:
    """Serves a page on loopback, with the options of the real one."""
    from hf_sae.space.app import build_app, launch_options

    app = build_app(service)
    options = launch_options() | {"prevent_thread_lock": True, "quiet": True, "server_name": "127.0.0.1"}
    app.launch(server_port=port, **options)
    return Running(app, app.local_url.rstrip("/"), app.server_port)


@pytest.fixture(scope="session")
def running(service: Service) -> Iterator[Running]:
    """The page of the planted autoencoder."""
    pytest.importorskip("gradio", reason="the page needs gradio: pip install 'hf-sae[space]'")
    page = launch(service)
    yield page
    page.app.close()
