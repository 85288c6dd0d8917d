"""The chapters' figures: each draws one finding from recorded runs (or from rows just measured) and says it in words.

One file a chapter. A function displays its figure or table, with the machine it shows, and returns nothing.
No number is typed: titles and descriptions are computed from the rows that are drawn.
"""
from .answers import answers
from .clusters import cluster_gain, cluster_lanes, layer_kernels, step_waits
from .collectives import all_reduce_by_size, least_us, push_against_nccl, two_shots
from .cost import (
    communication_share,
    fit_and_held_out,
    on_paper,
    per_element,
    predicted_against_recorded,
    second_gpu,
    second_gpu_table,
)
from .decode import break_even, decode_by_tp, decode_floor, ladder, prefill
from .hangs import faults
from .hidden import hidden_gain, hidden_lanes, hidden_tried
from .kernels import error_budget, support_matrix
from .lab import (
    lab_clusters,
    lab_cudnn,
    lab_fit_halves,
    lab_predictions,
    lab_shares,
    lab_step_fits,
    lab_tiles,
    lab_tried,
)
from .links import by_link, one_way, two_hosts, utilization
from .timeline import late_rank, timeline_layer, timeline_table

__all__ = ["all_reduce_by_size", "answers", "break_even", "by_link", "cluster_gain", "cluster_lanes",
           "communication_share", "decode_by_tp", "decode_floor", "error_budget", "faults",
           "fit_and_held_out", "hidden_gain", "hidden_lanes", "hidden_tried", "lab_clusters", "lab_cudnn",
           "lab_fit_halves", "lab_predictions", "lab_shares", "lab_step_fits", "lab_tiles", "lab_tried",
           "ladder", "late_rank", "layer_kernels", "least_us", "on_paper", "one_way", "per_element",
           "predicted_against_recorded", "prefill", "push_against_nccl", "second_gpu", "second_gpu_table",
           "step_waits", "support_matrix", "timeline_layer", "timeline_table", "two_hosts", "two_shots",
           "utilization"]
