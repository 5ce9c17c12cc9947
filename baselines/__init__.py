"""Other ways of restoring than the paper's; `utils.common.methods` lists them."""
