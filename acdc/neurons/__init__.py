"""Neurons: the hidden units of MLPs, ranked, and pruned inside the MLPs that a circuit keeps."""

from acdc.neurons.circuit import NeuronCircuit
from acdc.neurons.evaluation import NeuronEvaluation
from acdc.neurons.scores import NeuronScores, score_neurons
from acdc.neurons.search import discover_neurons, evaluate_neurons

__all__ = [
    "NeuronCircuit",
    "NeuronEvaluation",
    "NeuronScores",
    "discover_neurons",
    "evaluate_neurons",
    "score_neurons",
]
