"""Demonstrations of every format of the field, in and out."""

from mode_datasets.convert.formats import FORMATS, SINKS, Detected, detect, open_sink, open_source
from mode_datasets.convert.journal import Skipped
from mode_datasets.convert.pipeline import Progress, Report, convert
from mode_datasets.convert.sink import Sink, SinkOptions
from mode_datasets.convert.source import Source, SourceOptions, parse_keys

__all__ = [
    "FORMATS",
    "SINKS",
    "Detected",
    "Progress",
    "Report",
    "Sink",
    "SinkOptions",
    "Skipped",
    "Source",
    "SourceOptions",
    "convert",
    "detect",
    "open_sink",
    "open_source",
    "parse_keys",
]
