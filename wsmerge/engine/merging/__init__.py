"""From a merge recipe to a plan: which tensors of which models make each tensor of the output, and with what parameters."""
