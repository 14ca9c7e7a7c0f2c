"""Recipes written for other tools: their directions as adapters and checkpoints that mergekit and PEFT read."""
