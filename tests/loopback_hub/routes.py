"""All that the Hub answers."""

from __future__ import annotations

from tests.loopback_hub import (
    routes_accounts,
    routes_collections,
    routes_commit,
    routes_files,
    routes_info,
    routes_lfs,
    routes_refs,
    routes_repos,
    routes_tree,
    routes_xet,
)

__all__ = ["ROUTES", "STORAGE_ROUTES"]

STORAGE_ROUTES = routes_lfs.STORAGE_ROUTES
ROUTES = (
    *routes_accounts.ROUTES,
    *routes_repos.ROUTES,
    *routes_commit.ROUTES,
    *routes_refs.ROUTES,
    *routes_tree.ROUTES,
    *routes_info.ROUTES,
    *routes_lfs.ROUTES,
    *routes_collections.ROUTES,
    *routes_xet.ROUTES,
    *routes_files.ROUTES,
)
