"""Hosts: places by meaning, resolved by structure; loading; fingerprints."""

from .resolution import Place, Site, compare_fingerprints, fingerprint, places, resolve, unwrap, width_of


__all__ = ["Place", "Site", "compare_fingerprints", "fingerprint", "places", "resolve", "unwrap", "width_of"]
