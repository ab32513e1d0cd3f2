"""What a captured graph depends on in a model: its modules, their plain attributes, and the tensors they hold."""

from __future__ import annotations

from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn
from torch._prims_common import is_non_overlapping_and_dense

from drnet_captum.engine.state import check_parameters, modules_of

SAMPLES = 8  # numbers of each tensor that are compared
PLAIN = (bool, int, float, str, type(None))
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
