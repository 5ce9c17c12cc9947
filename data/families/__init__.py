"""The families of the bundled set: instructions authored here, one function a family."""

from data.families import numbers, problems, reading, sentences, units, words, writing
from data.families.family import Family

FAMILIES: tuple[Family, ...] = (
    *numbers.FAMILIES,
    *problems.FAMILIES,
    *units.FAMILIES,
    *words.FAMILIES,
    *sentences.FAMILIES,
    *reading.FAMILIES,
    *writing.FAMILIES,
)
