"""Causal tracing: what replacing one value at one place does to the metric."""

from acdc.tracing.result import SiteMap, Tracing
from acdc.tracing.sites import SITES, Site
from acdc.tracing.trace import trace

__all__ = ["SITES", "Site", "SiteMap", "Tracing", "trace"]
