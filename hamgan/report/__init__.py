"""A run's report: one HTML file that shows a run's folder, whole in itself and without a network.

The folder may be a stranger's and its run may still be training: nothing in it is trusted, followed out of it, locked or
changed. torch is not imported.
"""

from hamgan.report.write import Summary, write_report

__all__ = ["Summary", "write_report"]
