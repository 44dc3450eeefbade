"""All that can be drawn of runs."""

from __future__ import annotations

from stagecli.report.density_map import DensityMap
from stagecli.report.heatmap import HeatMap
from stagecli.report.panel import Panel

Drawing = Panel | HeatMap | DensityMap
