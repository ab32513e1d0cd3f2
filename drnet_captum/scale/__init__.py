"""Data sets of any size: explained or dissected batch after batch, on one machine or many, resumable, nothing lost."""

from drnet_captum.scale.dissection_run import dissect_dataset
from drnet_captum.scale.explanation_run import explain_dataset
from drnet_captum.scale.run_folder import Finished

__all__ = ["Finished", "dissect_dataset", "explain_dataset"]
