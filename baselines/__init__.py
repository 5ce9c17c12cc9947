"""Other ways of restoring than the paper's, one file each; `utils.common.methods` lists them."""
