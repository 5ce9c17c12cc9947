"""What a run found, as tables, pictures, a page and a model card, written from its record alone."""
