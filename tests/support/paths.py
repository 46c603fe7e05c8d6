from pathlib import Path

ROOT = Path(__file__).parents[2]
"""The checkout."""

SHARED_DATA = ROOT.parent / "shared" / "data"
"""Real images; tests that read them skip where the folder is absent."""
