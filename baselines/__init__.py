"""Restoration methods other than the paper's; `utils.common.methods` lists them."""
