"""Evaluation of attention methods: how well a model answers, predicts and recalls when decoding attends to less."""
