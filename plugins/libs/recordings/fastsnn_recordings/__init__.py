"""Recordings of event cameras: read in pieces, as frames or voxels, streamed through a network with its state."""

from fastsnn_recordings.events import EventError, Events
from fastsnn_recordings.files import pieces, read_events
from fastsnn_recordings.folders import EventFolder
from fastsnn_recordings.frames import denoised, frames, frames_by_count, voxels
from fastsnn_recordings.streaming import stream

__version__ = "0.1.0"
__all__ = [
    "EventError",
    "EventFolder",
    "Events",
    "denoised",
    "frames",
    "frames_by_count",
    "pieces",
    "read_events",
    "stream",
    "voxels",
]
