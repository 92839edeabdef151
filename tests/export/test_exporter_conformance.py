"""Every registered exporter passes the suite."""

from __future__ import annotations

import pytest

from edgekit.export.exporter import EXPORTERS
from edgekit.testing.exporters import ExporterConformance


@pytest.mark.parametrize("name", EXPORTERS)
class TestExporters(ExporterConformance):
    """Adding a format to the registry adds its tests."""
