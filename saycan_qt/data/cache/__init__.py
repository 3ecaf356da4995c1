"""Decoded frames, and what was computed from them: kept on the disk, within a size, for as long as it is of use."""
