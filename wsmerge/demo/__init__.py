"""The main job end to end on a real model, told as a report. Uses the public API only."""
