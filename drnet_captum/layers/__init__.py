"""Where to look: the layers that decide the answer, found on the recorded graph, and how their output is laid out."""

from drnet_captum.layers.discovery import LayerDiscoveryError, TargetLayer, find_cut_layers, find_target_layer
from drnet_captum.layers.layout import to_map

__all__ = ["LayerDiscoveryError", "TargetLayer", "find_cut_layers", "find_target_layer", "to_map"]
