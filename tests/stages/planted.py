"""A method as somebody else would add one: this file, and a line in the table (see test_command_line)."""

from models.terms import Term


class Factor(Term):
    """A scale (D,) of a norm's scale: a kind of term that only this method has."""

    learned = ("factor",)

    def forward(self, weight):
        return (self.factor - 1) * weight


def last_norm(inputs):
    """Trains the scale of the last norm."""
    return {"model.norm.weight": Factor(inputs.read("model.norm.weight").float() * 0 + 1)}
