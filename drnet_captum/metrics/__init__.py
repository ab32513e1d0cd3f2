"""How far a map can be trusted: faithfulness, localisation, robustness, and whether it depends on the model at all.

Every metric is a function over tensors. Maps are (N, H, W), (N, 1, H, W) or (N, C, H, W) of the input's height and
width; channels are summed. Nothing of the model is changed, and results do not depend on how many images are run at a
time.
"""

from .captum_metrics import infidelity, sensitivity_max
from .curves import Curve, curve, deletion, insertion
from .grid_pointing import cell_shares, grid_pointing_game, mosaic
from .imputation import impute
from .named import named_maps
from .pointing import box_masks, energy_in, pointing_game
from .quantus import explain_func
from .randomization import Randomization, randomization
from .rank import rank_correlation, ranks
from .road import Road, road

__all__ = [
    "Curve",
    "Randomization",
    "Road",
    "box_masks",
    "cell_shares",
    "curve",
    "deletion",
    "energy_in",
    "explain_func",
    "grid_pointing_game",
    "impute",
    "infidelity",
    "insertion",
    "mosaic",
    "named_maps",
    "pointing_game",
    "randomization",
    "rank_correlation",
    "ranks",
    "road",
    "sensitivity_max",
]
