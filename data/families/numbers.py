"""Plain arithmetic and number facts; every answer is computed."""

from fractions import Fraction
from math import isqrt
from random import Random

from data.families.family import Row, computed, listed


def addition(random: Random) -> Row:
    a, b = random.randint(2, 99), random.randint(2, 99)
    ask = random.choice(("What is {a} + {b}?", "Add {a} and {b}.", "Find the sum of {a} and {b}."))
    return Row(ask.format(a=a, b=b), output=f"{a} + {b} = {a + b}.")


def subtraction(random: Random) -> Row:
    b, rest = random.randint(2, 60), random.randint(2, 60)
    a = b + rest
    ask = random.choice(("What is {a} - {b}?", "Subtract {b} from {a}.", "Take {b} away from {a}."))
    return Row(ask.format(a=a, b=b), output=f"{a} - {b} = {rest}.")


def multiplication(random: Random) -> Row:
    a, b = random.randint(2, 12), random.randint(2, 15)
    ask = random.choice(("What is {a} times {b}?", "Multiply {a} by {b}.", "Find the product of {a} and {b}."))
    return Row(ask.format(a=a, b=b), output=f"{a} × {b} = {a * b}.")


def division(random: Random) -> Row:
    b, whole, rest = random.randint(2, 12), random.randint(2, 12), random.randint(0, 3)
    rest %= b
    a = b * whole + rest
    ask = random.choice(("Divide {a} by {b}.", "What is {a} divided by {b}?", "How often does {b} go into {a}?"))
    remainder = f" with a remainder of {rest}" if rest else ""
    return Row(ask.format(a=a, b=b), output=f"{a} divided by {b} is {whole}{remainder}.")


def percentage(random: Random) -> Row:
    percent, base = random.choice((5, 10, 20, 25, 50, 75)), 20 * random.randint(1, 25)
    ask = random.choice(("What is {p}% of {b}?", "Calculate {p} percent of {b}.", "Find {p}% of {b}."))
    return Row(ask.format(p=percent, b=base), output=f"{percent}% of {base} is {percent * base // 100}.")


def average(random: Random) -> Row:
    while True:
        values = [random.randint(1, 30) for _ in range(random.randint(3, 5))]
        if sum(values) % len(values) == 0:
            break
    ask = random.choice(("Calculate the average of these numbers.", "Find the mean of the numbers."))
    listed = ", ".join(map(str, values))
    answer = f"The average is {sum(values)} / {len(values)} = {sum(values) // len(values)}."
    return Row(ask, listed, answer)


def sort_numbers(random: Random) -> Row:
    values = random.sample(range(1, 100), random.randint(4, 7))
    order = random.choice(("ascending", "descending"))
    ask = random.choice(("Sort these numbers in {o} order.", "Arrange the list of numbers in {o} order."))
    result = sorted(values, reverse=order == "descending")
    return Row(ask.format(o=order), ", ".join(map(str, values)), ", ".join(map(str, result)))


def largest_number(random: Random) -> Row:
    values = random.sample(range(1, 500), random.randint(4, 6))
    word, pick = random.choice((("largest", max), ("smallest", min)))
    ask = random.choice(("Find the {w} number in the list.", "Which of these numbers is the {w}?"))
    return Row(ask.format(w=word), ", ".join(map(str, values)), f"The {word} number is {pick(values)}.")


def even_or_odd(random: Random) -> Row:
    n = random.randint(2, 400)
    ask = random.choice(("Is {n} an even or an odd number?", "Say whether {n} is even or odd."))
    kind, why = ("even", "it is divisible by 2") if n % 2 == 0 else ("odd", "it is not divisible by 2")
    return Row(ask.format(n=n), output=f"{n} is {kind} because {why}.")


def prime_check(random: Random) -> Row:
    n = random.randint(4, 120)
    ask = random.choice(("Is {n} a prime number?", "Decide whether {n} is prime."))
    divisor = next((k for k in range(2, isqrt(n) + 1) if n % k == 0), None)
    if divisor is None:
        answer = f"Yes, {n} is a prime number because only 1 and {n} divide it."
    else:
        answer = f"No, {n} is not a prime number because {divisor} × {n // divisor} = {n}."
    return Row(ask.format(n=n), output=answer)


def next_in_sequence(random: Random) -> Row:
    start = random.randint(1, 20)
    if random.random() < 0.7:
        step = random.randint(2, 12)
        values = [start + step * i for i in range(5)]
        rule = f"each number is {step} more than the one before"
    else:
        start, step = random.randint(1, 6), random.choice((2, 3))
        values = [start * step**i for i in range(5)]
        rule = f"each number is {step} times the one before"
    ask = random.choice(("What number comes next in the sequence?", "Continue the sequence with one number."))
    return Row(ask, ", ".join(map(str, values[:4])), f"The next number is {values[4]}, since {rule}.")


def rectangle(random: Random) -> Row:
    a, b = random.randint(2, 20), random.randint(2, 20)
    what = random.choice(("area", "perimeter"))
    ask = f"Find the {what} of a rectangle that is {a} cm long and {b} cm wide."
    if what == "area":
        return Row(ask, output=f"The area is {a} × {b} = {a * b} square centimetres.")
    return Row(ask, output=f"The perimeter is 2 × ({a} + {b}) = {2 * (a + b)} centimetres.")


def simplify_fraction(random: Random) -> Row:
    top, bottom, factor = random.randint(1, 9), random.randint(2, 12), random.randint(2, 9)
    a, b = top * factor, (top + bottom) * factor
    result = Fraction(a, b)
    ask = random.choice(("Simplify the fraction {a}/{b}.", "Reduce {a}/{b} to its lowest terms."))
    return Row(ask.format(a=a, b=b), output=f"{a}/{b} simplifies to {result.numerator}/{result.denominator}.")


def round_number(random: Random) -> Row:
    unit, name = random.choice(((10, "ten"), (100, "hundred")))
    n = random.randint(55, 980)
    ask = random.choice(("Round {n} to the nearest {u}.", "What is {n} rounded to the nearest {u}?"))
    return Row(
        ask.format(n=n, u=name),
        output=f"{n} rounded to the nearest {name} is {(n + unit // 2) // unit * unit}.",
    )


def number_in_words(random: Random) -> Row:
    n = random.randint(11, 199)
    ask = random.choice(("Write the number {n} in words.", "Spell out the number {n}."))
    return Row(ask.format(n=n), output=f"{in_words(n).capitalize()}.")


def roman_numeral(random: Random) -> Row:
    n = random.randint(2, 89)
    ask = random.choice(("Write {n} as a Roman numeral.", "Convert {n} to Roman numerals."))
    return Row(ask.format(n=n), output=f"{n} is {roman(n)} in Roman numerals.")


def in_words(n: int) -> str:
    """English words of a whole number from 0 to 199."""
    small = listed("""
    zero, one, two, three, four, five, six, seven, eight, nine, ten, eleven, twelve, thirteen, fourteen,
    fifteen, sixteen, seventeen, eighteen, nineteen
""")
    tens = listed("., ., twenty, thirty, forty, fifty, sixty, seventy, eighty, ninety")
    if n < 20:
        return small[n]
    if n < 100:
        return tens[n // 10] + (f"-{small[n % 10]}" if n % 10 else "")
    return "one hundred" + (f" and {in_words(n - 100)}" if n > 100 else "")


def roman(n: int) -> str:
    """The Roman numeral of a number from 1 to 89."""
    signs = ((50, "L"), (40, "XL"), (10, "X"), (9, "IX"), (5, "V"), (4, "IV"), (1, "I"))
    text = ""
    for value, sign in signs:
        text += sign * (n // value)
        n %= value
    return text


FAMILIES = computed(
    addition,
    subtraction,
    multiplication,
    division,
    percentage,
    average,
    sort_numbers,
    largest_number,
    even_or_odd,
    prime_check,
    next_in_sequence,
    rectangle,
    simplify_fraction,
    round_number,
    number_in_words,
    roman_numeral,
)
