"""What the claims are judged by: one function for each thing that a chapter's cell finds out for `claim`.

    rules   vLLM's own choices, from its rules; never this package's selector
    model   this package's model and collectives, on imagined ranks
    live    two live ranks
    runs    recorded runs
    links   data sheets and arithmetic

A value that was measured comes as `Measured`, with the machine in words. No function knows a verdict.
"""
# ruff: noqa: F401, I001
from ...attention.vllm_rules import auto_dtype, by_version, fact, select_as
from ...config import GPT2Config
from .links import ethernet, nvlink, one_way, pcie4, reaches
from .live import gathered, same_bits, summed
from .measured import Measured
from .model import adds_bias, bytes_of, bytes_over_diagram, heads_per_rank, rows, sends, shard, share_of_one_gpu
from .model import split_moves, sums_per_pair, who_sums_a_token
from .rules import NOW, THEN, accepted, asked_in_order, backends_of_flash, chosen, flash_dtypes, flash_heads, flex_takes
from .rules import forced, hopper_row, in_both, names_with_dot, obeyed, outcome_on_hopper, who_gets_fa2, who_gets_fa3
from .runs import bound_by, features_of_fa3, one_token, own_link, recorded, share_rows, shares
from .runs import speedups, us_per_element, utilization
