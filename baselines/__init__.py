"""Other ways of restoring than the paper's, one file each; `models.methods` lists them."""
